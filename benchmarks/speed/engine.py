"""What an engine under test can do. Its modules run in environments without this project's packages: stdlib only."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Classify:
    """One guard prompt. ``prefix`` and ``rest`` are its token ids, the answer's fixed start included: the logits after
    the last one decide. ``warm``: the prefix may be computed before the clock starts. ``generated`` asks for the
    answer as a generator writes it, ``answer`` tokens long. Our own engine starts from ``text``, tokenizing timed.
    """

    prefix: Sequence[int]
    rest: Sequence[int]
    text: str
    warm: bool
    generated: bool
    answer: int


@dataclass(frozen=True)
class Prefill:
    """A prompt that nothing is known of: time to the logits after it."""

    token_ids: Sequence[int]


@dataclass(frozen=True)
class Decode:
    """``streams`` sequences after ``prompt``, written together, ``steps`` tokens each; the prompt is not timed."""

    prompt: Sequence[int]
    streams: int
    steps: int


class Unsupported(Exception):  # noqa: N818 - not an error: the engine has no such mode
    """The engine cannot do this; the message says why."""


class Engine(Protocol):
    """Loaded once, then asked in turn. Every method returns the seconds of what is timed."""

    def classify(self, work: Classify) -> float: ...

    def prefill(self, work: Prefill) -> float: ...

    def decode(self, work: Decode) -> float: ...


def load(module: str, task: str, weights: str, threads: int) -> Engine:
    """The engine of a module with such a function of the last three; ``task`` is guard or instruct."""
    engine: Engine = importlib.import_module(module).load(task, weights, threads)
    return engine
