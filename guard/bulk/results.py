"""The files that a run leaves: the output in one of three formats, and the rows without a verdict apart."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from guard.bulk.output import COLUMNS, to_line
from guard.errors import InvalidInputError, UnsupportedError

Format = Literal["jsonl", "csv", "parquet"]
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
#: Rows of a Parquet row group, which is what is held in memory: some 40 MB.
_GROUP = 4096


def format_of(path: Path) -> Format:
    """By the suffix. Raises InvalidInputError."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInputError("out", f"expected a file that ends with {', '.join(_SUFFIXES)}; or say --format")
    return _SUFFIXES[path.suffix.lower()]


def check_format(kind: Format) -> None:
    """Raises UnsupportedError when Parquet needs a package that is not installed."""
    if kind == "parquet":
        _arrow()


def write_results(
    lines: Callable[[], Iterable[bytes]], out: Path, kind: Format, codes: Sequence[str], integer_ids: bool
) -> None:
    """Put the output rows ``lines()`` into ``out``: whole or not at all."""
    with replaced(out) as file:
        if kind == "jsonl":
            file.writelines(lines())
        elif kind == "csv":
            _write_csv(lines(), file, codes)
        else:
            _write_parquet(lines(), file, codes, integer_ids)


def write_errors(lines: Iterable[bytes], out: Path) -> None:
    """Put row, reason, field and problem of each row without a verdict into ``out``, as JSON lines."""
    with replaced(out) as file:
        for value in map(json.loads, lines):
            if value["verdict"] is None:
                file.write(to_line({name: value[name] for name in ("row", "error", "field", "problem")}))


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` once it is whole and on the disk."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _write_csv(lines: Iterable[bytes], file: IO[bytes], codes: Sequence[str]) -> None:
    """Flagged categories in one cell with spaces between them, a column for each category's score."""
    head = [name for name in COLUMNS if name != "scores"]
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(f"score_{code}" for code in codes)])
    for value in map(json.loads, lines):
        scores = value.pop("scores")
        cells = {**value, "categories": " ".join(value["categories"])}
        writer.writerow([*(_cell(cells[name]) for name in head), *(scores.get(code) for code in codes)])
    text.detach()


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _write_parquet(lines: Iterable[bytes], file: IO[bytes], codes: Sequence[str], integer_ids: bool) -> None:
    arrow, parquet = _arrow()
    schema = parquet_schema(codes, integer_ids)
    rows = map(json.loads, lines)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, _GROUP)):
            if not integer_ids:
                for value in group:
                    value["id"] = None if value["id"] is None else str(value["id"])
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def parquet_schema(codes: Sequence[str], integer_ids: bool) -> Any:
    """Types of ``COLUMNS`` as a ``pyarrow.Schema``. A row that a list decided has no category scores."""
    arrow, _ = _arrow()
    text, whole = arrow.string(), arrow.int64()
    types = {
        "row": whole,
        "id": whole if integer_ids else text,
        "unsafe_score": arrow.float64(),
        "categories": arrow.list_(text),
        "scores": arrow.struct([(code, arrow.float64()) for code in codes]),
        "forged_delimiters": arrow.bool_(),
        **dict.fromkeys(("windows", "window_start", "window_end", "context_left_out", "prompt_tokens"), whole),
    }
    return arrow.schema([(name, types.get(name, text)) for name in COLUMNS])


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UnsupportedError("Parquet needs the Python package pyarrow; pip install 'guardlet[bulk]'") from None
    return pyarrow, pyarrow.parquet
