"""What a batch has to do, decided before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from export.batch.config import Batch, Job
from export.batch.records import Decision, decide, read_record
from export.checkpoint import open_checkpoint
from export.memory import peak_estimate
from export.spec import ModelSpec
from guard.bundle.manifest import Source
from guard.errors import GuardError, InvalidInputError

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunOptions:
    """``only``: these names; all where it is empty. ``fail_fast``: start no more once one failed. ``again``: make anew
    what is there, too.
    """

    only: tuple[str, ...] = ()
    fail_fast: bool = False
    again: bool = False


@dataclass(frozen=True)
class Planned:
    """``need``: estimated bytes at the most; None where the checkpoint could not be read."""

    job: Job
    decision: Decision
    need: int | None


@dataclass(frozen=True)
class _Opened:
    """What an export would read; of a checkpoint that cannot be used, ``error`` alone."""

    spec: ModelSpec | None = None
    source: Source | None = None
    error: str | None = None


def plan_jobs(batch: Batch, options: RunOptions, limit: int | None, say: Say, offline: bool = False) -> list[Planned]:
    """A decision for each chosen job. Each checkpoint is opened, and its files are hashed, once; a model of the hub is
    downloaded, unless ``offline``. ``limit``: bytes, None for none.

    Raises InvalidInputError for a name in ``only`` that the file has not.
    """
    unknown = sorted(set(options.only) - {job.name for job in batch.jobs})
    if unknown:
        names = ", ".join(job.name for job in batch.jobs)
        raise InvalidInputError("only", f"the file has no {', '.join(unknown)}; there are: {names}")
    opened: dict[tuple[object, ...], _Opened] = {}
    planned = []
    for job in batch.jobs:
        if options.only and job.name not in options.only:
            continue
        key = (job.request.source, job.request.revision, job.request.adapter)
        if key not in opened:
            adapter = "" if job.request.adapter is None else f" with {job.request.adapter}"
            say(f"reading {job.request.source}{adapter}")
            opened[key] = _Opened() if offline and job.from_hub else _open(job)
        planned.append(_plan(batch, job, opened[key], options.again, limit))
    return planned


def _open(job: Job) -> _Opened:
    """The export hashes the files again: its manifest says what it really read."""
    request = job.request
    try:
        checkpoint = open_checkpoint(request.source, revision=request.revision, adapter=request.adapter)
    except GuardError as error:
        return _Opened(error=str(error))
    except OSError as error:
        return _Opened(error=f"{error.filename or request.source}: {error.strerror or type(error).__name__}")
    return _Opened(checkpoint.spec, checkpoint.source)


def _plan(batch: Batch, job: Job, opened: _Opened, again: bool, limit: int | None) -> Planned:
    if opened.error is not None:
        return Planned(job, Decision("refuse", opened.error), None)
    need = None if opened.spec is None else peak_estimate(opened.spec, job.request)
    decision = decide(job, read_record(batch.output, job.name), opened.source, again)
    if need is not None and limit is not None and need > limit and decision.action in ("make", "remake"):
        reason = f"needs about {need / (1 << 20):.0f} MiB of memory, and may have {limit / (1 << 20):.0f} MiB"
        decision = Decision("refuse", reason)
    return Planned(job, decision, need)
