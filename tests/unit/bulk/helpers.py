"""Rows, a backend that needs no model, and what a run leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from guard.bulk.output import Identity, judged, to_line, unjudged
from guard.bulk.source import Item, Problem, Source
from guard.evaluation.rows import Columns
from guard.normalize import ViewKind
from guard.verdict import CategoryScore, Judgement, Verdict, Window

IDENTITY = Identity("fake", "ab" * 32, "default", "cd" * 32, "one_pass", ("S1", "S2"))
TEXT = Columns(text="text")
#: Stands in rows, and nowhere else.
SECRET = "zebra-umbrella"


def write_rows(path: Path, count: int, *, bad: tuple[int, ...] = ()) -> Path:
    """JSON lines with an id and a text; the rows in ``bad``, from 0, have no text."""
    rows = [{"id": index, "text": f"{SECRET} {index}"} if index not in bad else {"id": index} for index in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def judgement(score: float, windows: int = 1) -> Judgement:
    """Of one pass."""
    unsafe = score >= 0.5
    return Judgement(
        verdict=Verdict.UNSAFE if unsafe else Verdict.SAFE,
        unsafe_score=score,
        categories=(CategoryScore("S2", "Two", score * 0.75, unsafe), CategoryScore("S1", "One", score / 4, False)),
        mode="one_pass",
        forged_delimiters=False,
        view=ViewKind.RAW,
        window=Window(0, 5, 0, windows),
        context_left_out=0,
        passes=1,
        prompt_tokens=40,
        cached_tokens=0,
        completion_tokens=0,
        queue_s=0.0,
        model_s=0.0,
    )


class FakeBackend:
    """Judges by the number of the row: every third is unsafe. Calls ``before`` with each number, which may raise. Which
    numbers it was asked about it keeps, unless told otherwise.
    """

    def __init__(
        self, before: Callable[[int], None] = lambda number: None, identity: Identity = IDENTITY, keep: bool = True
    ) -> None:
        self.identity = identity
        self._keep = keep
        self.asked: list[int] = []
        self._before = before

    def judge(self, source: Source) -> Iterator[tuple[bytes, ...]]:
        for chunk in source.chunks():
            yield tuple(map(self._line, chunk.items))

    def _line(self, item: Item) -> bytes:
        self._before(item.number)
        if self._keep:
            self.asked.append(item.number)
        if item.conversation is None:
            return to_line(unjudged(item, item.problem or Problem("INTERNAL", "", ""), self.identity))
        unsafe = item.number % 3 == 0
        return to_line(judged(item, judgement(0.9 if unsafe else 0.1), "block" if unsafe else "allow", self.identity))


def values(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def quiet(done: int, total: int, resumed: int) -> None:
    """No progress."""
