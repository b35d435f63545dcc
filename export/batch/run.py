"""Runs a batch: makes what its plan says, in processes whose estimated memory stays within the bound."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from export.batch.child import Child, Ending
from export.batch.config import Batch, Job
from export.batch.lock import locked
from export.batch.plan import Planned, RunOptions, Say, plan_jobs
from export.batch.records import Record, known_manifest, manifest_digest, options_of, read_record, write_record
from export.batch.report import Outcome, Report, Row
from export.batch.schedule import Schedule
from export.memory import available_bytes
from export.package import staging
from guard.engine.cpus import available_cpus
from guard.errors import BundleError

_POLL_S = 0.05
#: Each export computes on all CPUs; on few of them, two at once only take turns (docs/decisions/0181-batch-export.md).
_CPUS_EACH = 4
#: How long exports that are interrupted may take to remove what they began.
_TIDY_S = 20.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unlike Ctrl-C the running exports have not been told of."""


def plan_batch(batch: Batch, options: RunOptions, say: Say = lambda line: None) -> Report:
    """What ``run_batch`` would do; nothing is written, and nothing downloaded. Raises as it does."""
    began, limit = time.monotonic(), _limit(batch)
    outcomes: dict[str, Outcome] = {"make": "planned", "remake": "planned", "keep": "current", "refuse": "failed"}
    rows = {job.name: _row(batch, job, None, "skipped", "not chosen") for job in batch.jobs}
    for each in plan_jobs(batch, options, limit, say, offline=True):
        decision = each.decision
        rows[each.job.name] = _row(batch, each.job, each.need, outcomes[decision.action], decision.reason)
    return _report(batch, limit, rows, began)


def run_batch(batch: Batch, options: RunOptions, say: Say = lambda line: None) -> Report:
    """Make every bundle that is missing or no longer what the file asks for; one that fails leaves the others alone.

    Writes the report to the output. Raises InvalidInputError for a name in ``only`` that the file has not,
    UnavailableError while another batch has the output, and KeyboardInterrupt, once running exports have ended, when
    interrupted.
    """
    began, limit = time.monotonic(), _limit(batch)
    with locked(batch.output) as lock:
        rows = {job.name: _row(batch, job, None, "skipped", "not chosen") for job in batch.jobs}
        planned = plan_jobs(batch, options, limit, say)
        try:
            _Run(batch, options, limit, lock, rows, say).make(planned)
        finally:
            report = _report(batch, limit, rows, began)
            report.write(batch.output)
    return report


class _Run:
    """A run in progress; ``rows`` is filled with what becomes of each job."""

    def __init__(
        self, batch: Batch, options: RunOptions, limit: int | None, lock: int, rows: dict[str, Row], say: Say
    ) -> None:
        self._batch = batch
        self._fail_fast = options.fail_fast
        self._limit = limit
        self._lock = lock
        self._rows = rows
        self._say = say
        self._running: dict[str, Child] = {}

    def make(self, planned: Sequence[Planned]) -> None:
        """Make what is to be made; an exception ends the running exports first."""
        work = {each.job.name: each for each in planned if each.decision.action in ("make", "remake")}
        for each in planned:
            self._settle(each)
        needs = {name: each.need or 0 for name, each in work.items()}
        schedule = Schedule(needs, self._limit, self._batch.parallel or max(1, available_cpus() // _CPUS_EACH))
        try:
            while self._start_more(schedule, work) or self._running:
                time.sleep(_POLL_S)
                for name, ending in self._ended():
                    schedule.done(name)
                    self._finish(work[name], ending)
        except BaseException as error:
            told = isinstance(error, KeyboardInterrupt) and not isinstance(error, Terminated)
            for name, child in self._running.items():
                child.stop(ask=not told, wait_s=_TIDY_S)
                self._rows[name] = replace(self._rows[name], reason="interrupted")
            raise

    def _settle(self, planned: Planned) -> None:
        """What needs no export."""
        job, reason = planned.job, planned.decision.reason
        match planned.decision.action:
            case "keep":
                _adopt(self._batch, job)
                self._set(planned, "current", reason)
            case "refuse":
                self._set(planned, "failed", reason)
            case _:
                self._rows[job.name] = _row(self._batch, job, planned.need, "skipped", "not started")

    def _start_more(self, schedule: Schedule, work: dict[str, Planned]) -> bool:
        """Start what fits; whether anything is running or will be."""
        while not self._stopped() and (name := schedule.start()) is not None:
            self._say(f"{name}: started ({work[name].decision.reason})")
            self._running[name] = _start(self._batch, work[name], self._lock)
        return bool(self._running)

    def _stopped(self) -> bool:
        return self._fail_fast and any(row.outcome == "failed" for row in self._rows.values())

    def _ended(self) -> list[tuple[str, Ending]]:
        """Take out of the running what has ended."""
        endings = [(name, child.poll()) for name, child in self._running.items()]
        ended = [(name, ending) for name, ending in endings if ending is not None]
        for name, _ in ended:
            del self._running[name]
        return ended

    def _finish(self, planned: Planned, ending: Ending) -> None:
        job = planned.job
        seconds = round(ending.seconds, 1)
        if ending.error is None:
            digest = manifest_digest(job.request.out)
            record = Record(options_of(job), digest, None, seconds, ending.peak_bytes)
            write_record(self._batch.output, job.name, record)
            self._set(planned, "made", planned.decision.reason)
        else:
            with suppress(BundleError), staging(job.request.out, overwrite=True):
                pass  # removes what one that was killed had begun
            self._set(planned, "failed", ending.error, seconds, ending.peak_bytes)

    def _set(
        self, planned: Planned, outcome: Outcome, reason: str, seconds: float | None = None, peak: int | None = None
    ) -> None:
        row = _row(self._batch, planned.job, planned.need, outcome, reason)
        if outcome == "failed":
            row = replace(row, seconds=seconds, peak_bytes=peak)
        self._rows[planned.job.name] = row
        self._say(row.line())


def _start(batch: Batch, planned: Planned, lock: int) -> Child:
    job = planned.job
    record = Record(options_of(job), manifest=None, replaces=manifest_digest(job.request.out))
    write_record(batch.output, job.name, record)
    return Child(job.request, overwrite=planned.decision.action == "remake", lock=lock)


def _adopt(batch: Batch, job: Job) -> None:
    """Complete the record of a bundle that was published when its run was killed."""
    record = read_record(batch.output, job.name)
    if record is not None and record.manifest is None:
        write_record(batch.output, job.name, replace(record, manifest=manifest_digest(job.request.out), replaces=None))


def _row(batch: Batch, job: Job, need: int | None, outcome: Outcome, reason: str) -> Row:
    """With all that is known of the bundle, if there is one."""
    manifest = known_manifest(job.request.out)
    return Row.of(job, manifest, read_record(batch.output, job.name), need, outcome, reason)


def _limit(batch: Batch) -> int | None:
    return batch.max_memory or available_bytes()


def _report(batch: Batch, limit: int | None, rows: dict[str, Row], began: float) -> Report:
    seconds = round(time.monotonic() - began, 1)
    return Report(str(batch.config), str(batch.output), limit, seconds, tuple(rows.values()))
