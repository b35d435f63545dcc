"""The check of an exported instruct model: it answers."""

from __future__ import annotations

from pathlib import Path

from export.qualify.lines import Result
from guard.conversation import Conversation, Message, Role
from guard.engine.sampler import SamplingParams
from guard.engine.settings import EngineSettings
from guard.generation import GenerateTask
from guard.runtime import load_instruct

#: Questions with one plain answer, which any trained instruct model of 100M parameters or more knows.
QUESTIONS = (("What is the capital of France?", "Paris"), ("What is the opposite of hot?", "cold"))


def check_answers(bundle: Path, threads: int) -> Result:
    """Greedy answers to QUESTIONS that hold the word, ignoring case."""
    generator = load_instruct(bundle, EngineSettings(threads=threads))
    try:
        right = 0
        for question, word in QUESTIONS:
            conversation = Conversation((Message(Role.USER, question),))
            text = generator.generate(
                GenerateTask(conversation, max_tokens=40, sampling=SamplingParams(temperature=0.0))
            ).text
            right += word.casefold() in text.casefold()
    finally:
        generator.close()
    return ("PASS" if right == len(QUESTIONS) else "FAIL"), f"{right} of {len(QUESTIONS)} plain questions answered"
