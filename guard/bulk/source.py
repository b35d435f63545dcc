"""The rows of a file as they are judged, in chunks. One that cannot be judged keeps its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from guard.conversation import Conversation, Target
from guard.errors import InvalidInputError
from guard.evaluation.files import Record, read_records
from guard.evaluation.rows import Columns, judged_part

#: Characters of an id: it is copied to the output, and is not meant to be a text.
MAX_ID_CHARACTERS = 256


@dataclass(frozen=True)
class Problem:
    """Why a row has no verdict: ``reason`` of the error, the ``field`` to change ("": none), and what is wrong with it.

    Never any text of the row.
    """

    reason: str
    field: str
    problem: str


@dataclass(frozen=True)
class Item:
    """One row: ``number`` is its line (Parquet: row), from 1. Either it asks something or there is a problem."""

    number: int
    id: str | int | None
    conversation: Conversation | None = None
    target: Target | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class Chunk:
    """Rows that are judged together; ``index`` counts chunks, from 0."""

    index: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Source:
    """The first ``limit`` rows of a file (None: all), less ``skip``. ``batch``: the most rows of a chunk."""

    path: Path
    columns: Columns
    id_column: str | None = None
    limit: int | None = None
    skip: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("batch", self.batch)):
            if value is not None and value < 1:
                raise InvalidInputError(name, "expected at least 1")

    def after(self, rows: int) -> Source:
        """The same without its first ``rows``."""
        return replace(self, skip=rows)

    def items(self) -> Iterator[Item]:
        """In the order of the file. Raises InvalidInputError for a file that is broken as a whole, OSError."""
        required = (*self.columns.texts, *(() if self.id_column is None else (self.id_column,)))
        for record in islice(read_records(self.path, required), self.skip, self.limit):
            yield _item(record, self.columns, self.id_column)

    def chunks(self) -> Iterator[Chunk]:
        """The items, ``batch`` at a time; raises what ``items`` raises."""
        items, index = self.items(), 0
        while taken := tuple(islice(items, self.batch)):
            yield Chunk(index, taken)
            index += 1


def _item(record: Record, columns: Columns, id_column: str | None) -> Item:
    row_id = None
    try:
        if record.problem is not None:
            raise InvalidInputError("row", record.problem)
        row_id = None if id_column is None else _id(record.values.get(id_column), id_column)
        conversation, target = judged_part(record.values, columns)
    except InvalidInputError as error:
        return Item(record.number, row_id, problem=Problem(error.reason, error.field, error.problem))
    return Item(record.number, row_id, conversation, target)


def _id(value: Any, column: str) -> str | int | None:
    if isinstance(value, str) and len(value) <= MAX_ID_CHARACTERS and value.isprintable():
        return value
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63):
        return value
    raise InvalidInputError(column, f"expected a whole number, or at most {MAX_ID_CHARACTERS} printable characters")
