"""What a run has judged so far, on disk: lines of output, one a row, in order, each whole or not there.

Beside the lines stands what they depend on, so that a run which goes on with another input, policy or bundle is refused
instead of mixing two. A kill at any byte costs what was not written yet, and no more.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from guard.bulk.results import replaced
from guard.errors import InvalidInputError

FORMAT = "guardlet-bulk"
FORMAT_VERSION = 1
_JOB, _ROWS = "job.json", "rows.jsonl"
#: Lines survive a kill of this process as soon as they are written, and a crash of the machine after so long.
_SYNC_S = 5.0


@dataclass(frozen=True)
class Job:
    """``depends_on``: by name, everything that decides what is written. ``rows`` of the input are to be judged;
    ``integer_ids``: all of their ids are whole numbers.
    """

    depends_on: Mapping[str, Any]
    rows: int
    integer_ids: bool


@dataclass
class Tally:
    """Rows by verdict; of those without one, by reason."""

    safe: int = 0
    unsafe: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """All of them."""
        return self.safe + self.unsafe + self.errors.total()

    def add(self, value: Mapping[str, Any]) -> None:
        """Count one row of output. Raises KeyError when it is none."""
        if value["verdict"] == "safe":
            self.safe += 1
        elif value["verdict"] == "unsafe":
            self.unsafe += 1
        else:
            self.errors[value["error"]] += 1


class RunState:
    """The directory of one run. Use it as a context manager: it is locked meanwhile.

    Raises InvalidInputError when another run has it, or holds what is not a run's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tally = Tally()
        self._file: IO[bytes] | None = None
        self._synced = 0.0

    def __enter__(self) -> RunState:
        self.directory.mkdir(exist_ok=True)
        path = self.directory / _ROWS
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):  # one that has it, or one that has just removed it
            file.close()
            raise InvalidInputError("out", f"another run is writing {self.directory.name}") from None
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not (self.directory / _JOB).exists():  # nothing was begun, or all is done
            shutil.rmtree(self.directory, ignore_errors=True)
        if self._file is not None:
            self._file.close()

    @property
    def job(self) -> Job | None:
        """That of an earlier run which did not end; None when there is none."""
        try:
            value = json.loads((self.directory / _JOB).read_text(encoding="utf-8"))
            if value.pop("format") != FORMAT or value.pop("version") != FORMAT_VERSION:
                raise ValueError
            return Job(**value)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidInputError("out", f"{self.directory.name}/{_JOB} is not one of {FORMAT} 1") from None

    def begin(self, job: Job) -> None:
        """Forget what is there, and start ``job``."""
        assert self._file is not None
        (self.directory / _JOB).unlink(missing_ok=True)
        os.ftruncate(self._file.fileno(), 0)
        value = {"format": FORMAT, "version": FORMAT_VERSION, **vars(job)}
        with replaced(self.directory / _JOB) as file:
            file.write(json.dumps(value).encode() + b"\n")

    def resume(self, rows: int) -> int:
        """Keep the whole lines at the start, at most ``rows``; returns how many there are."""
        assert self._file is not None
        kept = 0
        self._file.seek(0)
        for line in self._file:
            if self.tally.rows == rows or not self._is_whole(line):
                break
            kept += len(line)
        os.ftruncate(self._file.fileno(), kept)
        return self.tally.rows

    def add(self, lines: Sequence[bytes]) -> None:
        """Write the next rows. They survive a kill of this process from here on."""
        assert self._file is not None
        self._file.write(b"".join(lines))
        self._file.flush()
        for line in lines:
            self.tally.add(json.loads(line))
        if time.monotonic() - self._synced > _SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def lines(self) -> Iterator[bytes]:
        """All rows, in order."""
        with (self.directory / _ROWS).open("rb") as file:
            yield from file

    def end(self) -> None:
        """Forget the run: the results are in their place."""
        (self.directory / _JOB).unlink()

    def _is_whole(self, line: bytes) -> bool:
        try:
            if not line.endswith(b"\n"):
                return False
            self.tally.add(json.loads(line))
        except (ValueError, KeyError, TypeError):  # such as the zeros that a crash of the machine may leave
            return False
        return True


def check_same(earlier: Job, depends_on: Mapping[str, Any]) -> None:
    """Raises InvalidInputError naming everything that ``earlier`` was begun with and is different now."""
    names = [*earlier.depends_on, *(name for name in depends_on if name not in earlier.depends_on)]
    changed = [name for name in names if earlier.depends_on.get(name) != depends_on.get(name)]
    if changed:
        problem = f"an earlier run did not end, and began with another {', '.join(changed)}"
        raise InvalidInputError("out", f"{problem}; use what it had, or --restart to judge all rows again")
