"""A scripted guard: unsafe is a text with the bad word, in the first prompt position that can say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guard.classifier import Classifier
from guard.engine.engine import Engine
from guard.engine.kv_cache import Float32
from guard.engine.settings import EngineSettings
from guard.scan import ScanLimits
from guard.testing import FakeRunner, logits_for

from .builders import CATEGORIES, END, FORMAT, SAFE, SEPARATOR, UNSAFE, write_bundle

ROWS = {token: row for row, token in enumerate(FORMAT.answer.head_token_ids())}
BAD_WORD = "forbidden"
#: Ids of the byte tokenizer are positions in the sorted byte-level alphabet; letters keep their order from "!" on.
_BAD_IDS = bytes(ord(letter) - ord("!") for letter in BAD_WORD)
_LIST = {291: CATEGORIES["S2"], CATEGORIES["S2"]: SEPARATOR, SEPARATOR: CATEGORIES["S10"], CATEGORIES["S10"]: END}


def answers(seen: tuple[int, ...]) -> Float32:
    """A guard that finds the bad word: unsafe, first S2, then S10."""
    last = seen[-1]
    if last == 290:
        is_unsafe = _BAD_IDS in bytes(token for token in seen if token < 256)
        return logits_for({SAFE: 0.0, UNSAFE: 3.0 if is_unsafe else -3.0}, ROWS)
    return logits_for({_LIST.get(last, END): 5.0}, ROWS)


@contextmanager
def started(
    directory: Path,
    answer: Callable[[tuple[int, ...]], Float32] = answers,
    settings: EngineSettings | None = None,
    limits: ScanLimits | None = None,
) -> Iterator[tuple[Classifier, FakeRunner]]:
    """A classifier over a scripted runner, closed at the end."""
    runner = FakeRunner(answer, rows=ROWS)
    engine = Engine(runner, settings or EngineSettings(prefill_chunk=200), "test")
    classifier = Classifier(write_bundle(directory, "guard"), runner, engine, limits)
    try:
        yield classifier, runner
    finally:
        classifier.close()
