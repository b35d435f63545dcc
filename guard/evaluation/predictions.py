"""What a guard said about each row, kept in a file of JSON lines: no text, rows by the hash of what was judged."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from guard.errors import InvalidInputError

FORMAT = "guardlet-predictions"
FORMAT_VERSION = 1
_EMPTY: Mapping[str, float] = {}


@dataclass(frozen=True)
class Judge:
    """Who said it. Predictions of two judges are never mixed: ``digest`` is the SHA-256 of the bundle's manifest."""

    model: str
    digest: str
    quantization: str
    mode: str


@dataclass(frozen=True)
class Prediction:
    """A score P(unsafe) with the categories by falling score and (exact mode) those the model wrote out; or the reason
    of an error, and no score.
    """

    score: float | None
    categories: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    named: tuple[str, ...] = ()
    error: str | None = None

    @property
    def leading(self) -> str | None:
        """The category with the highest score."""
        return next(iter(self.categories), None)


class PredictionLog:
    """Appends predictions to ``path`` as they are made, and knows those that an earlier run left there.

    A line that was cut off by a kill is taken away. Rows that ended with an error are judged again. Use it as a context
    manager: it locks the file. Raises InvalidInputError when the file is another judge's, or another run has it open.
    """

    def __init__(self, path: Path, judge: Judge) -> None:
        self._path = path
        self._judge = judge
        self._file: IO[bytes] | None = None
        self.known: dict[str, Prediction] = {}

    def __enter__(self) -> PredictionLog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+b")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidInputError("out", f"{self._path.name}: another run is writing it") from None
            self._resume(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: str, prediction: Prediction) -> None:
        """Write one prediction; it survives a kill of this process from here on."""
        assert self._file is not None
        self.known[key] = prediction
        _write(self._file, {"key": key, **_to_json(prediction)})

    def _resume(self, file: IO[bytes]) -> None:
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole == 0:
            os.ftruncate(file.fileno(), 0)
            _write(file, {"format": FORMAT, "version": FORMAT_VERSION, "judge": asdict(self._judge)})
            return
        judge, predictions = _parse(data[:whole], self._path.name)
        if judge != self._judge:
            raise InvalidInputError("out", f"{self._path.name} is another model's or mode's; choose another directory")
        os.ftruncate(file.fileno(), whole)
        self.known = {key: value for key, value in predictions.items() if value.error is None}


def read_predictions(path: Path) -> tuple[Judge, dict[str, Prediction]]:
    """A finished file's judge, and its predictions by row key. Raises InvalidInputError, OSError."""
    return _parse(path.read_bytes(), path.name)


def _parse(data: bytes, name: str) -> tuple[Judge, dict[str, Prediction]]:
    header, *lines = data.splitlines() or [b""]
    number = 1
    try:
        value = json.loads(header)
        if value["format"] != FORMAT or value["version"] != FORMAT_VERSION:
            raise ValueError
        judge = Judge(**value["judge"])
        predictions = {}
        for line in lines:
            number += 1
            value = json.loads(line)
            predictions[str(value.pop("key"))] = _from_json(value)
    except (ValueError, KeyError, TypeError):
        raise InvalidInputError("predictions", f"{name}: line {number} is not one of {FORMAT} 1") from None
    return judge, predictions


def _to_json(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"error": prediction.error}
    categories = {code: round(score, 6) for code, score in prediction.categories.items()}
    value = {"score": prediction.score, "categories": categories}
    return {**value, "named": list(prediction.named)} if prediction.named else value


def _from_json(value: dict[str, Any]) -> Prediction:
    if "error" in value:
        return Prediction(None, error=str(value["error"]))
    score = float(value["score"])
    if not 0 <= score <= 1:  # also false for NaN
        raise ValueError
    categories = {str(code): float(share) for code, share in value["categories"].items()}
    return Prediction(score, categories, tuple(map(str, value.get("named", ()))))


def _write(file: IO[bytes], value: dict[str, Any]) -> None:
    file.write(json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n")
    file.flush()
