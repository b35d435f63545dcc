"""Asking a guard about rows: progress, resume, and errors that are never taken for an answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from guard.classifier import Classifier, ClassifyTask, Mode
from guard.engine.sequence import Ticket
from guard.errors import DeadlineError, InvalidInputError, ModelOutputError, UnsupportedError
from guard.evaluation.predictions import Judge, Prediction, PredictionLog
from guard.evaluation.rows import Row
from guard.policy import Policy
from guard.verdict import Judgement

#: Rows in the engine at a time: one computes while the next is made into a prompt.
_IN_FLIGHT = 4

#: Called with how many rows are done, of how many, and how many of them an earlier run had done.
Progress = Callable[[int, int, int], None]


class Predictor(Protocol):
    """A guard that can be asked."""

    judge: Judge

    def predict(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Prediction]]:
        """One prediction a row. A row without an answer has an error; a guard that cannot be asked any more raises."""


@dataclass(frozen=True)
class Run:
    """Predictions by row key, and what making them took. ``resumed`` counts those of an earlier run."""

    judge: Judge
    predictions: dict[str, Prediction]
    resumed: int
    seconds: float


def run(rows: Sequence[Row], predictor: Predictor, log: PredictionLog, progress: Progress) -> Run:
    """Judge ``rows`` that ``log`` does not know, each once however often it stands in the data."""
    began = time.monotonic()
    wanted = {row.key: row for row in rows}
    left = [row for key, row in wanted.items() if key not in log.known]
    resumed = len(wanted) - len(left)
    progress(resumed, len(wanted), resumed)
    for done, (row, prediction) in enumerate(predictor.predict(left), start=resumed + 1):
        log.add(row.key, prediction)
        progress(done, len(wanted), resumed)
    return Run(predictor.judge, {key: log.known[key] for key in wanted}, resumed, time.monotonic() - began)


def asking_policy(mode: Mode, threshold: float) -> Policy:
    """The policy that rows are judged under.

    One pass: no threshold stops the scan of a long or disguised text early, so a score is the worst of all passes and
    ``score >= t`` is the verdict of a server with threshold t, for every t. Exact: the threshold that is asked about,
    because it decides which texts get a category list.
    """
    return Policy(threshold=1.0 if mode == "one_pass" else threshold)


class LocalPredictor:
    """Asks a bundle in this process."""

    def __init__(self, classifier: Classifier, mode: Mode, threshold: float) -> None:
        manifest = classifier.bundle.manifest
        self.judge = Judge(manifest.name, classifier.bundle.digest, manifest.quantization.name, mode)
        self._classifier = classifier
        self._mode = mode
        self._policy = asking_policy(mode, threshold)

    def predict(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Prediction]]:
        """In order."""
        waiting: deque[tuple[Row, Ticket[Judgement] | Prediction]] = deque()
        for row in rows:
            waiting.append((row, self._submit(row)))
            if len(waiting) == _IN_FLIGHT:
                yield _finish(*waiting.popleft(), self._mode)
        while waiting:
            yield _finish(*waiting.popleft(), self._mode)

    def _submit(self, row: Row) -> Ticket[Judgement] | Prediction:
        task = ClassifyTask(row.conversation, row.target, self._policy, self._mode)
        try:
            return self._classifier.submit(task)
        except (InvalidInputError, UnsupportedError) as error:
            return Prediction(None, error=error.reason)


def _finish(row: Row, answer: Ticket[Judgement] | Prediction, mode: Mode) -> tuple[Row, Prediction]:
    if isinstance(answer, Prediction):
        return row, answer
    try:
        judgement = answer.future.result()
    except (ModelOutputError, DeadlineError) as error:
        return row, Prediction(None, error=error.reason)
    return row, to_prediction(judgement, mode)


class Answer(Protocol):
    """What a local judgement and a server's classification have in common, as far as an evaluation reads it."""

    @property
    def unsafe_score(self) -> float: ...
    @property
    def categories(self) -> Sequence[CategoryAnswer]: ...


class CategoryAnswer(Protocol):
    """One category of an answer."""

    @property
    def code(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def flagged(self) -> bool: ...


def to_prediction(answer: Answer, mode: Mode) -> Prediction:
    """Scores with the categories by falling score; in the exact mode, those that were flagged."""
    ordered = sorted(answer.categories, key=lambda category: -category.score)
    named = tuple(category.code for category in ordered if category.flagged) if mode == "exact" else ()
    return Prediction(answer.unsafe_score, {category.code: category.score for category in ordered}, named)
