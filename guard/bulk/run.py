"""One run from a file of rows to its results: what was judged before a kill is kept, in order, and nothing twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from guard.bulk.output import Identity
from guard.bulk.results import Format, check_format, format_of, write_errors, write_results
from guard.bulk.source import Source
from guard.bulk.state import Job, RunState, check_same
from guard.errors import GuardError, InvalidInputError
from guard.evaluation.runner import Progress


class Backend(Protocol):
    """Something that judges rows."""

    @property
    def identity(self) -> Identity: ...

    def judge(self, source: Source) -> Iterator[tuple[bytes, ...]]:
        """A line of output for each item of ``source``, in order, some at a time.

        Raises GuardError when it cannot go on; what it yielded until then is kept.
        """


@dataclass(frozen=True)
class BulkRequest:
    """``out`` gets a row for each of the source's, ``errors`` one for each without a verdict.

    ``format`` of the output; None: by its suffix. ``restart`` judges again what an earlier run has judged, and replaces
    an ``out`` that exists. Raises InvalidInputError, or UnsupportedError for a format without its package.
    """

    source: Source
    out: Path
    errors: Path | None = None
    format: Format | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        paths = [path.resolve() for path in (self.source.path, self.out, self.errors_file, self.state_directory)]
        if len(set(paths)) < len(paths):
            raise InvalidInputError("out", "the input, the output and the errors must be different files")
        check_format(self.kind)

    @property
    def kind(self) -> Format:
        """The output's format."""
        return self.format or format_of(self.out)

    @property
    def errors_file(self) -> Path:
        """Beside the output, unless named."""
        return self.errors or self.out.with_name(self.out.name + ".errors.jsonl")

    @property
    def state_directory(self) -> Path:
        """Where the rows stand until all are judged: beside the output, on the same disk."""
        return self.out.with_name(self.out.name + ".bulk")


@dataclass(frozen=True)
class Summary:
    """What a run came to. ``errors``: rows without a verdict, by reason. ``resumed`` rows were judged by an earlier
    run; ``seconds`` is what this one took for the others.
    """

    rows: int
    safe: int
    unsafe: int
    errors: Mapping[str, int]
    resumed: int
    seconds: float
    identity: Identity
    input_sha256: str
    out: str
    errors_file: str


def moderate(request: BulkRequest, backend: Backend, progress: Progress) -> Summary:
    """Judge all rows that an earlier run with the same ``out`` has not, and put the results into their place.

    Raises InvalidInputError for an input, a policy or a bundle that is not that run's, for an ``out`` that exists
    without one, and for an input that changes meanwhile; what ``backend`` raises; OSError.
    """
    with RunState(request.state_directory) as state:
        source, identity = request.source, backend.identity
        stamp, sha256 = _stamp(source.path), _sha256(source.path)
        depends_on = _depends_on(source, identity, sha256)
        job = _earlier(request, state, depends_on)
        if job is None:
            job = _survey(source, depends_on)
            state.begin(job)
        resumed = state.resume(job.rows)
        began = time.monotonic()
        progress(resumed, job.rows, resumed)
        if resumed < job.rows:
            for lines in backend.judge(source.after(resumed)):
                state.add(lines)
                progress(state.tally.rows, job.rows, resumed)
        seconds = time.monotonic() - began
        if _stamp(source.path) != stamp:
            raise InvalidInputError("in", f"{source.path.name} changed while it was read")
        if state.tally.rows != job.rows:
            raise GuardError(f"{state.tally.rows} rows were judged, the input has {job.rows}")
        write_errors(state.lines(), request.errors_file)
        write_results(state.lines, request.out, request.kind, identity.codes, job.integer_ids)
        state.end()
        tally = state.tally
    return Summary(
        rows=job.rows,
        safe=tally.safe,
        unsafe=tally.unsafe,
        errors=dict(sorted(tally.errors.items())),
        resumed=resumed,
        seconds=seconds,
        identity=identity,
        input_sha256=sha256,
        out=str(request.out),
        errors_file=str(request.errors_file),
    )


def _earlier(request: BulkRequest, state: RunState, depends_on: Mapping[str, Any]) -> Job | None:
    """The run to go on with."""
    job = None if request.restart else state.job
    if job is not None:
        check_same(job, depends_on)
    elif request.out.exists() and not request.restart:
        raise InvalidInputError("out", f"{request.out.name} is there already; --restart replaces it")
    return job


def _survey(source: Source, depends_on: Mapping[str, Any]) -> Job:
    """Read all rows once: a file that is broken as a whole is refused before any is judged.

    Raises InvalidInputError when none of them can be judged: then it was asked for the wrong columns.
    """
    rows, readable, integer_ids, first = 0, False, source.id_column is not None, None
    for item in source.items():
        rows += 1
        readable = readable or item.problem is None
        first = first or item
        integer_ids = integer_ids and (item.id is None or isinstance(item.id, int))
    if first is not None and first.problem is not None and not readable:
        why = f"row {first.number}: {first.problem.field}: {first.problem.problem}"
        raise InvalidInputError("in", f"{source.path.name}: none of {rows} rows can be judged; {why}")
    return Job(depends_on, rows, integer_ids)


def _depends_on(source: Source, identity: Identity, sha256: str) -> dict[str, Any]:
    """By the names that users know."""
    columns = source.columns
    return {
        "input (its SHA-256)": sha256,
        "--text-column, --prompt-column or --response-column": [columns.text, columns.context, columns.role.value],
        "--messages-column": columns.messages,
        "--target-column": columns.target,
        "--id-column": source.id_column,
        "--limit": source.limit,
        "model": identity.model,
        "bundle (the SHA-256 of its manifest)": identity.revision,
        "policy": [identity.policy, identity.policy_digest],
        "mode": identity.mode,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
