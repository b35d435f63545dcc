"""Models whose answers and speed a test chooses, behind the real prompt builder, tokenizer, engine and classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from guard.bundle.manifest import Task
from guard.classifier import Classifier
from guard.engine.engine import Engine
from guard.engine.settings import EngineSettings
from guard.errors import BundleError
from guard.generator import Generator
from guard.testing import FakeRunner, Float32, logits_for
from guard.tokenizer import Segment, Tokenizer
from server.registry import Model
from tests.unit.guard.builders import CATEGORIES, FORMAT, SAFE, UNSAFE, write_bundle

#: A text that contains this is unsafe in S2, any other is safe.
UNSAFE_MARK = "#steal#"
#: A text that contains this makes the model answer with NaN.
BROKEN_MARK = "#nan#"
#: What the instruct model writes, again and again.
LETTERS = "abcdefghij"


@dataclass
class FakeModels:
    """A ``server.registry.Loader``. ``step_seconds`` is what one model step takes; ``fail`` makes every load fail.

    ``says``: what the instruct model writes as its first message, its second and so on, ending each; none: LETTERS.
    """

    directory: Path
    step_seconds: float = 0.0
    fail: bool = False
    says: list[str] = field(default_factory=list)
    #: What happens in the model step that reads a text with the mark.
    faults: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    runners: dict[Task, FakeRunner] = field(default_factory=dict)

    def __call__(self, directory: Path, task: Task, settings: EngineSettings) -> Model:
        if self.fail:
            raise BundleError("model.onnx: the hash differs")
        bundle = write_bundle(self.directory / directory.name, task)
        tokenizer = Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control)
        answers = guard_answers(tokenizer) if task == "guard" else instruct_answers(tokenizer, self.says)
        marks = [(_ids(tokenizer, mark), fault) for mark, fault in self.faults.items()]

        def answer(seen: tuple[int, ...]) -> Float32:
            for mark, fault in marks:
                if _contains(seen, mark):
                    fault()
            return answers(seen)

        runner = self.runners[task] = FakeRunner(answer, step_seconds=self.step_seconds)
        engine = Engine(runner, settings, task)
        return Classifier(bundle, runner, engine) if task == "guard" else Generator(bundle, runner, engine)


def crash() -> None:
    """A fault: the engine's thread dies."""
    raise SystemExit


class guard_answers:  # noqa: N801 - used like a function
    """Unsafe with P about 0.98, and S2, for texts with UNSAFE_MARK."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._unsafe = _ids(tokenizer, UNSAFE_MARK)
        self._broken = _ids(tokenizer, BROKEN_MARK)

    def __call__(self, seen: tuple[int, ...]) -> Float32:
        rows = {token: token for token in range(512)}
        if _contains(seen, self._broken):
            return np.full(512, np.nan, np.float32)
        unsafe = 2.0 if _contains(seen, self._unsafe) else -2.0
        return logits_for({UNSAFE: unsafe, SAFE: -unsafe, CATEGORIES["S1"]: 0.0, CATEGORIES["S2"]: 3.0}, rows)


class instruct_answers:  # noqa: N801 - used like a function
    """Writes LETTERS without end, by the number of tokens so far; or of ``says`` the message whose turn it is.

    Where a grammar allows nothing of that, it closes what is open. NaN for texts with BROKEN_MARK.
    """

    def __init__(self, tokenizer: Tokenizer, says: Sequence[str] = ()) -> None:
        self._letters, self._broken = _ids(tokenizer, LETTERS), _ids(tokenizer, BROKEN_MARK)
        self._opening = tuple(tokenizer.encode([Segment("<|im_start|>assistant\n", trusted=True)]))
        (self._end,) = tokenizer.encode([Segment("<|im_end|>", trusted=True)])
        self._tokenizer, self._says = tokenizer, says  # read anew at each step: tests may change it
        self._closing = dict(zip((self._end, *_ids(tokenizer, '"}')), (5.0, 4.0, 3.0), strict=True))

    def __call__(self, seen: tuple[int, ...]) -> Float32:
        if _contains(seen, self._broken):
            return np.full(512, np.nan, np.float32)
        token, size = self._letters[len(seen) % len(LETTERS)], len(self._opening)
        places = (place for place, other in enumerate(seen) if other == self._opening[0])
        starts = [place + size for place in places if seen[place : place + size] == self._opening]
        if not self._says or not starts:
            return logits_for({token: 10.0}, {token: token for token in range(512)})
        said = (*_ids(self._tokenizer, self._says[len(starts) - 1]), self._end)
        token = said[min(len(seen) - starts[-1], len(said) - 1)]
        return logits_for(self._closing | {token: 10.0}, {token: token for token in range(512)})


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode([Segment(text, trusted=False)]))


def _contains(seen: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(seen[start : start + len(part)] == part for start in range(len(seen) - len(part) + 1))


assert set(CATEGORIES) == set(FORMAT.categories)
