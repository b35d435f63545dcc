"""The prompts of the benchmark, all written for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from guard.conversation import Conversation, Message, Role
from guard.engine.sampler import SamplingParams
from guard.generation import GenerateTask

#: Prompts whose answers repeat stretches of them, but for translations: ``=== kind``, then the prompt.
_TASKS = Path(__file__).with_name("tasks.txt")
_HEADING = "=== "

STORIES = (
    "Tell me a long story about a fisherman and a storm.",
    "Describe a market in an old town, from early morning to night.",
    "Explain how bread is made, from the field to the table.",
    "Write a long letter from a sailor to his sister.",
    "What should I know before I keep bees? Explain in detail.",
    "Tell me the story of a clock that stopped.",
    "Explain the seasons to a child, with examples.",
    "Describe a journey by train through the mountains.",
)
QUESTIONS = (
    "What is the capital of Italy?",
    "Why is the sky blue?",
    "Name three animals that can fly.",
    "Write a haiku about rain.",
    "How do I boil an egg?",
    "What is 17 plus 25?",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "Write a Python function that reverses a string.",
)
_SENTENCE = (
    "On day {day} the council talked about the bridge, the school roof and the price of water for {hours} hours. "
)


@dataclass(frozen=True)
class LookupTask:
    """A prompt and what kind of work it asks for."""

    kind: str
    prompt: str


def lookup_tasks() -> list[LookupTask]:
    """The tasks in tasks.txt."""
    parts = _TASKS.read_text(encoding="utf-8").split(_HEADING)[1:]
    return [LookupTask(kind, prompt.strip()) for kind, _, prompt in (part.partition("\n") for part in parts)]


def minutes(sentences: int, first_day: int = 1) -> str:
    """A text of so many sentences, about 26 tokens each, that differs from its first words on with ``first_day``."""
    days = range(first_day, first_day + sentences)
    return "".join(_SENTENCE.format(day=day, hours=day % 7 + 1) for day in days)


def ask(prompt: str, max_tokens: int, *, prompt_lookup: bool = False, logprobs: int | None = None) -> GenerateTask:
    """A greedy task with one user message."""
    conversation = Conversation((Message(Role.USER, prompt),))
    return GenerateTask(conversation, max_tokens=max_tokens, prompt_lookup=prompt_lookup, logprobs=logprobs)


def sample(prompt: str, max_tokens: int, seed: int, choices: int = 1) -> GenerateTask:
    """A task that is sampled with a seed."""
    sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=seed)
    conversation = Conversation((Message(Role.USER, prompt),))
    return GenerateTask(conversation, max_tokens=max_tokens, sampling=sampling, choices=choices, prompt_lookup=False)
