"""Files of records: JSON lines, CSV and Parquet, one mapping of column to value a row."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from guard.errors import InvalidInputError, UnsupportedError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: Bytes of a line of JSON, characters of a CSV cell. Far above what a guard reads, and what bounds the memory of a
#: reader: a file without line ends, or with a quote that nobody closed, is one line or one cell to its end.
_MAX_LINE = 16 << 20
_SKIPPED = 1 << 20
_UNDECODED = re.compile("[\udc80-\udcff]")
_PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Record:
    """One row. ``number``: the line where it begins (Parquet: the row), from 1. ``problem``: why it has no values."""

    number: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_records(path: Path, required: Sequence[str]) -> Iterator[Record]:
    """Every record of ``path``, by its suffix: .jsonl, .ndjson, .csv, .tsv (each also .gz) or .parquet.

    ``required`` columns must be in the header of a CSV or Parquet file. Raises InvalidInputError for a file that is
    broken as a whole, UnsupportedError when pyarrow is missing. Messages never quote the file: a first line that is no
    header would be somebody's text.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    try:
        if kind in ([".jsonl"], [".ndjson"]):
            yield from _json_lines(path, zipped)
        elif kind in ([".csv"], [".tsv"]):
            yield from _csv(path, zipped, "\t" if kind == [".tsv"] else ",", required)
        elif suffixes[-1:] == [".parquet"]:
            yield from _parquet(path, required)
        else:
            raise InvalidInputError("data", "expected a .jsonl, .csv, .tsv (each also .gz) or .parquet file")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InvalidInputError("data", f"{path.name}: the gzip data is damaged") from None


def _json_lines(path: Path, zipped: bool) -> Iterator[Record]:
    with _opened(path, zipped) as file:
        for number, line in enumerate(_lines(file), start=1):
            if len(line) > _MAX_LINE:
                yield Record(number, problem=f"longer than {_MAX_LINE >> 20} MiB")
                continue
            text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                yield Record(number, problem="not a line of JSON in UTF-8")
                continue
            if isinstance(value, dict):
                yield Record(number, value)
            else:
                yield Record(number, problem="not a JSON object")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of ``file``; of one that is too long, its start, which is too long as well."""
    while line := file.readline(_MAX_LINE + 1):
        yield line
        too_long = len(line) > _MAX_LINE
        while too_long and line and not line.endswith(b"\n"):
            line = file.readline(_SKIPPED)


def _csv(path: Path, zipped: bool, delimiter: str, required: Sequence[str]) -> Iterator[Record]:
    csv.field_size_limit(_MAX_LINE)
    with _opened(path, zipped) as file:
        reader = csv.reader(_decoded(file), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _check_header(header, required)
            began = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(header):
                    yield Record(began, problem=f"{len(cells)} cells, the header has {len(header)}")
                elif any(_UNDECODED.search(cell) for cell in cells):
                    yield Record(began, problem="not UTF-8")
                elif cells:
                    yield Record(began, dict(zip(header, cells, strict=True)))
                began = reader.line_num + 1
        except csv.Error as error:
            problem = f"{path.name}: line {reader.line_num} cannot be read as CSV ({error})"
            raise InvalidInputError("data", problem) from None


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """Lines as text; a byte that is not UTF-8 becomes a lone surrogate, which no UTF-8 gives."""
    for number, line in enumerate(_lines(file)):
        if len(line) > _MAX_LINE:
            raise csv.Error(f"longer than {_MAX_LINE >> 20} MiB")
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line
        yield text.decode("utf-8", errors="surrogateescape")


def _parquet(path: Path, required: Sequence[str]) -> Iterator[Record]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise UnsupportedError("Parquet needs the Python package pyarrow; pip install 'guardlet[eval]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_header(file.schema_arrow.names, required)
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(number, values)
    except arrow.ArrowException:
        raise InvalidInputError("data", f"{path.name}: not a readable Parquet file (after row {number})") from None


def _check_header(header: Sequence[str], required: Sequence[str]) -> None:
    for name in required:
        if name not in header:
            raise InvalidInputError("data", f"has no column {name!r}; name the columns that it has")
    if len(set(header)) != len(header):
        raise InvalidInputError("data", "two columns have the same name")


def _opened(path: Path, zipped: bool) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb")
