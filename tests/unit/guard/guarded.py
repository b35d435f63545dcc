"""Guarded generation without models: a writer whose text and pace a test chooses, and a guard that waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from guard.classifier import Classifier
from guard.conversation import Conversation, Message, Role, ToolCall
from guard.engine.kv_cache import Float32
from guard.engine.sequence import Job, Ticket
from guard.errors import GuardError
from guard.generation import Choice, Delta, FinishReason, GenerateTask, Generation
from guard.generator import Generator
from guard.pipeline import GuardedGeneration, GuardedGenerator, Moderation
from guard.scan import ScanLimits

from .scripted import BAD_WORD, answers

LIMITS = ScanLimits(window=120, overlap=30, context=200)
QUESTION = GenerateTask(Conversation((Message(Role.USER, "Tell me a story"),)))
FORBIDDEN_QUESTION = GenerateTask(Conversation((Message(Role.USER, f"A {BAD_WORD} story"),)))
STORY = "once upon a time there was a baker who got up at five and was very happy with it"
OFTEN = Moderation(every_tokens=8)
BROKEN = "bewitched"  # the guard cannot read it


class Writer(Generator):
    """An instruct model that writes ``deltas``, one every ``pause_s`` seconds, and waits for ``may_go`` before each."""

    def __init__(self, deltas: Sequence[Delta], pause_s: float = 0.0, calls: tuple[ToolCall, ...] = ()) -> None:
        self.deltas = deltas
        self.calls = calls
        self.pause_s = pause_s
        self.may_go = threading.Event()
        self.may_go.set()
        self.submitted = 0
        self.written = 0
        self.ended = threading.Event()

    def submit(
        self,
        task: GenerateTask,
        on_delta: Callable[[Delta], None],
        deadline: float | None = None,
        caller: str = "",
    ) -> Ticket[Generation]:
        self.submitted += 1
        ticket: Ticket[Generation] = Ticket(_no_job, 0, deadline)
        threading.Thread(target=self._write, args=(ticket, task, on_delta), daemon=True).start()
        return ticket

    def prompt_tokens(self, task: GenerateTask) -> int:
        return 7

    def _write(self, ticket: Ticket[Generation], task: GenerateTask, on_delta: Callable[[Delta], None]) -> None:
        ticket.future.set_running_or_notify_cancel()
        ticket.started = time.monotonic()
        error: GuardError | None = None
        for delta in self.deltas:
            while not self.may_go.wait(0.001) and ticket.unwanted() is None:
                pass
            time.sleep(self.pause_s)
            error = ticket.unwanted()
            if error is not None:
                break
            self.written += 1
            on_delta(delta)
        self.ended.set()
        if error is not None:
            ticket.future.set_exception(error)
        else:
            ticket.future.set_result(self._generation(task.choices))

    def _generation(self, choices: int) -> Generation:
        told = [[delta for delta in self.deltas if delta.choice == index] for index in range(choices)]
        return Generation(
            choices=tuple(
                Choice(
                    "".join(delta.text for delta in deltas),
                    FinishReason.STOP,
                    deltas[-1].completion_tokens + 1 if deltas else 1,
                    self.calls,
                )
                for deltas in told
            ),
            prompt_tokens=7,
            cached_tokens=3,
            drafted_tokens=2,
            accepted_tokens=1,
            queue_s=0.1,
            first_token_s=0.2,
            model_s=0.3,
        )


def _no_job(ticket: Ticket[Generation]) -> Job[Generation]:
    raise AssertionError("not run by an engine")


def deltas_of(pieces: Sequence[str], choice: int = 0) -> list[Delta]:
    return [Delta(piece, index + 1, choice) for index, piece in enumerate(pieces)]


def words(text: str) -> list[Delta]:
    return deltas_of([word + " " for word in text.split(" ")])


class Slow:
    """A guard's answers, each only when ``may_go`` is set and after ``pause_s`` seconds."""

    def __init__(self) -> None:
        self.pause_s = 0.0
        self.may_go = threading.Event()
        self.may_go.set()
        self.asked = threading.Event()

    def __call__(self, seen: tuple[int, ...]) -> Float32:
        self.asked.set()
        self.may_go.wait(10)
        time.sleep(self.pause_s)
        if bytes(ord(letter) - ord("!") for letter in BROKEN) in bytes(token for token in seen if token < 256):
            return np.full_like(answers(seen), np.nan)
        return answers(seen)


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


def run(
    classifier: Classifier, writer: Writer, moderation: Moderation = OFTEN, task: GenerateTask = QUESTION
) -> tuple[GuardedGeneration, list[Delta]]:
    released: list[Delta] = []
    ticket = GuardedGenerator(writer, classifier).submit(task, moderation, released.append)
    return ticket.future.result(20), released


def text_of(released: Sequence[Delta], choice: int = 0) -> str:
    return "".join(delta.text for delta in released if delta.choice == choice)
