"""Fifty prompts of mixed kinds: what people ask, and texts to go on with."""

from __future__ import annotations

from guard.conversation import Conversation, Message, Role
from guard.generation import GenerateTask

_STORY = (
    "The ferry left the harbour at six with eleven passengers, two bicycles and a crate of oranges. Half-way across, "
    "the engine stopped. The captain, who had repaired it twice that month, sent for his toolbox and asked everybody "
    "to sit on the left side. After forty minutes the ferry moved again, and the oranges were shared out among all."
)
_NOTES = (
    "Monday: call the plumber about the kitchen tap. Tuesday: dentist at half past nine. Wednesday: return the library "
    "books and buy stamps. Thursday: nothing planned. Friday: dinner with Ana, bring the blue folder."
)

QUESTIONS = (
    "What is the capital of Norway?",
    "Why do cats purr?",
    "Give me a recipe for lentil soup.",
    "Write a haiku about rain.",
    "How many days are there in a leap year?",
    "Explain what a hash table is in two sentences.",
    "Translate 'good morning' into Spanish, French and German.",
    "What is 17 times 23?",
    "List five things to pack for a week of camping.",
    "Write an email that asks a neighbour to keep the noise down at night.",
    "Name three rivers in Africa.",
    "What does the word 'ephemeral' mean?",
    "Write a SQL query that counts the orders of each customer.",
    "How do I tie a bowline knot?",
    "Suggest a name for a bakery by the sea.",
    "What happened in 1969 on the moon?",
    "Explain to a child why the moon changes its shape.",
    "Is a tomato a fruit or a vegetable?",
    "Write a regular expression for a date such as 2024-05-17.",
    "What should I do when my bicycle chain comes off?",
    f"Summarize this text in one sentence:\n\n{_STORY}",
    f"Rewrite this text in the present tense:\n\n{_STORY}",
    f"What did the passengers get in the end?\n\n{_STORY}",
    f"Turn these notes into a list:\n\n{_NOTES}",
    f"On which day is the dentist?\n\n{_NOTES}",
    "¿Cuál es la diferencia entre el té verde y el té negro?",
    "Quels sont les jours de la semaine ?",
    "Wie viele Bundesländer hat Deutschland?",
    "Write a limerick about a mathematician. 🙂",
    "Reply with the single word: yes",
)
BEGINNINGS = (
    "Once upon a time, in a village at the foot of a mountain,",
    "The three most important inventions of the nineteenth century were",
    "def fibonacci(n):\n    ",
    "import json\n\n\ndef load_settings(path):\n",
    "<html>\n<head>\n<title>My garden</title>\n",
    '{"name": "Maria", "age": 31, "languages": ["Portuguese",',
    "1, 1, 2, 3, 5, 8, 13,",
    "Ingredients:\n- 200 g of flour\n- 2 eggs\n-",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is the boiling point of water?\nA:",
    "SELECT name, price FROM products WHERE",
    "# How to plant a tree\n\n## 1. Choose a place\n\n",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "Breaking news: scientists have discovered",
    "| fruit | colour |\n|---|---|\n| banana | yellow |\n| cherry |",
    "Le petit chat était assis sur",
    "In conclusion, we have shown that",
    "To be, or not to be, that is",
    "for (int i = 0; i < 10; i++) {\n",
    "A",
)


def tasks(max_tokens: int) -> list[GenerateTask]:
    """Greedy, with the log probability of each token: they carry the token ids."""
    asked = [Conversation((Message(Role.USER, question),)) for question in QUESTIONS]
    return [
        *(GenerateTask(each, max_tokens=max_tokens, logprobs=0) for each in asked),
        *(GenerateTask(prompt=each, max_tokens=max_tokens, logprobs=0) for each in BEGINNINGS),
    ]
