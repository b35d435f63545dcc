"""The engine: one thread that runs one model's jobs, within limits of number and memory.

ONNX Runtime uses all the cores in one call, so models are not run in parallel: jobs ask for model steps, and the
scheduler serves them together or in turn. A cancelled or late job is closed before its next step, which frees its KV
cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from guard.engine.budget import KvBudget
from guard.engine.cost import Work
from guard.engine.fair_queue import FairQueue
from guard.engine.runner import Runner
from guard.engine.scheduler import Scheduler
from guard.engine.sequence import NO_WORK, Job, T, Ticket
from guard.engine.settings import EngineSettings
from guard.engine.stats import WAIT_BOUNDS, EngineStats, Tally
from guard.errors import (
    CancelledError,
    DeadlineError,
    GuardError,
    InputTooLongError,
    OverloadedError,
    UnavailableError,
)

#: Seconds between two looks when nothing can run: callers may have left, and deadlines passed.
_LOOK_S = 0.1
#: Seconds after which an idle engine takes any job: whoever is refused teaches nothing about what jobs cost now.
_STALE_S = 3.0


def retry_after(seconds: float) -> float:
    """What to tell a refused caller: an estimate, within reason."""
    return min(max(seconds, 0.1), 30.0)


class Engine:
    """Runs jobs on its own thread within the limits of its settings."""

    def __init__(self, runner: Runner, settings: EngineSettings, name: str) -> None:
        self.settings = settings
        self._queued = FairQueue(settings.max_queued, settings.max_queued_tokens)
        self._scheduler = Scheduler(runner, settings, time.monotonic)
        self._budget = KvBudget(settings.kv_bytes)
        self._active = 0
        self._waits = Tally(WAIT_BOUNDS)  # seconds; added to under the lock
        self._changed = threading.Condition()  # over the queue, the budget and the number of active jobs
        self._closed = False
        self._abandoned = False
        self._starting: list[Ticket[Any]] = []  # of this round: the scheduler may not know them yet
        #: When the round that runs now began, in time.monotonic() seconds; None while there is nothing to do.
        self.round_began: float | None = None
        #: What its thread died of.
        self.failure: BaseException | None = None
        self._retired = 0.0  # when a job last ended, time.monotonic() seconds
        self._job_seconds = 0.0  # of the last finished job, to tell refused callers when to come back
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    def submit(
        self,
        job: Callable[[Ticket[T]], Job[T]],
        *,
        kv_bytes: int = 0,
        deadline: float | None = None,
        work: Work = NO_WORK,
        caller: str = "",
    ) -> Ticket[T]:
        """Queue a job of ``caller`` that needs ``kv_bytes`` of KV cache and at most ``work``; ``deadline`` is in
        time.monotonic() seconds.

        Raises OverloadedError when there is no room in the queue for it, DeadlineError when the deadline has passed or
        will before it is done, InputTooLongError when the KV cache could never fit, UnavailableError when the engine is
        closed.
        """
        if kv_bytes > self.settings.kv_bytes:
            raise InputTooLongError("messages", kv_bytes, self.settings.kv_bytes)
        ticket = Ticket(job, kv_bytes, deadline, work, caller)
        ticket.on_change = self._wake
        if deadline is not None and ticket.submitted >= deadline:
            raise DeadlineError("the deadline has passed")
        with self._changed:
            if not self.alive:
                raise UnavailableError("the engine is not running")
            unwanted = [] if self._queued.has_room(ticket) else self._take_unwanted()
            refusal = self._refusal(ticket)
            if refusal is None:
                self._queued.add(ticket)
                self._changed.notify()
        _end_unwanted(unwanted)
        if refusal is not None:
            raise refusal
        return ticket

    def hold(self, kv_bytes: int) -> None:
        """Reserve KV cache across jobs, until ``release``. Raises OverloadedError when so much is not free now."""
        with self._changed:
            if not self._budget.take(kv_bytes):
                raise OverloadedError("the KV cache has no room", retry_after(self._job_seconds))

    def release(self, kv_bytes: int) -> None:
        """Give back what ``hold`` reserved."""
        with self._changed:
            self._budget.give(kv_bytes)
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """False once closed, or if the thread died."""
        return not self._closed and self._thread.is_alive()

    @property
    def kv_bytes_in_use(self) -> int:
        """Bytes of KV cache reserved by active jobs and held across jobs."""
        with self._changed:
            return self._budget.used

    @property
    def kv_bytes_peak(self) -> int:
        """The most bytes of KV cache that were ever reserved at once."""
        with self._changed:
            return self._budget.peak

    @property
    def jobs(self) -> int:
        """Jobs waiting or active."""
        with self._changed:
            return len(self._queued) + self._active

    @property
    def stats(self) -> EngineStats:
        """What it has done so far, and what it does now."""
        counters = self._scheduler.counters
        with self._changed:
            return EngineStats(
                queued=len(self._queued),
                active=self._active,
                kv_bytes=self._budget.used,
                kv_bytes_peak=self._budget.peak,
                kv_bytes_limit=self._budget.total,
                steps=counters.steps,
                failed_steps=counters.failed_steps,
                prefill_tokens=counters.prefill_tokens,
                decode_tokens=counters.decode_tokens,
                waits=self._waits.snapshot(),
                batches=counters.batches.snapshot(),
            )

    def close(self) -> None:
        """Stop after the current step; jobs that have not ended fail with UnavailableError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if not self._abandoned:
            self._thread.join()

    def abandon(self) -> None:
        """Give up on a thread that hangs or has died: every job ends with UnavailableError now, and ``close`` does not
        wait. Should the thread come back it stops; until then what its jobs hold is not freed.
        """
        with self._changed:
            self._closed = self._abandoned = True
            left = self._take_all()
            self._changed.notify()
        for ticket in left:
            ticket.abandon(UnavailableError("the engine does not answer"))

    def _run(self) -> None:
        error: BaseException = UnavailableError("the engine was stopped")
        try:
            while (starting := self._wait_for_work()) is not None:
                self._starting, self.round_began = starting, time.monotonic()
                self._scheduler.round(starting)
                self._retire(self._scheduler.take_ended())
                with self._changed:
                    unwanted = self._take_unwanted()
                _end_unwanted(unwanted)
                self._starting, self.round_began = [], None
        except BaseException as failure:  # noqa: BLE001 - a bug in the loop itself: nobody may be left waiting
            self.failure = failure  # not raised again: Python would print its text, which may hold a request's
            error = UnavailableError("the engine stopped unexpectedly")
        finally:
            self.round_began = None
            self._fail_all(error)

    def _refusal(self, ticket: Ticket[Any]) -> GuardError | None:
        """Why ``ticket`` may not wait, if so."""
        before = self._before(ticket)
        if not self._queued.has_room(ticket):
            waiting = f"{len(self._queued)} requests of {self._queued.tokens} tokens are waiting"
            return OverloadedError(f"{waiting}, there is no room for this one", retry_after(sum(before)))
        cost = self._scheduler.cost
        stale = not before and ticket.submitted - self._retired > _STALE_S
        if ticket.deadline is None or not cost.known or stale:
            return None
        wait_s, own_s = cost.wait_s(ticket.work, before, self.settings.max_active), cost.own_s(ticket.work)
        left_s, part = ticket.deadline - ticket.submitted, self.settings.deadline_part
        # Others may still come in between, so only the wait has a margin: an engine with nothing to do takes what fits.
        if not part or part * wait_s + own_s <= left_s:
            return None
        return DeadlineError(f"the answer would take about {wait_s + own_s:.2g} s, the deadline leaves {left_s:.2g} s")

    def _before(self, ticket: Ticket[Any]) -> list[float]:
        """What each job that is served before ``ticket`` still takes of the engine's time, in seconds."""
        jobs = [*self._running(), *self._queued.ahead_of(ticket.caller)]
        return [self._scheduler.cost.engine_s(job.work, job.done) for job in jobs]

    def _running(self) -> list[Ticket[Any]]:
        """The active jobs that take turns; those that are paused are left out unless they have to be ended."""
        return [ticket for ticket in self._scheduler.tickets if not ticket.paused or ticket.unwanted() is not None]

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _wait_for_work(self) -> list[Ticket[Any]] | None:
        """The jobs to start now, once there is anything to do; None when the engine is closed.

        None of them after ``_LOOK_S`` when all wait for held memory or slow readers: callers may have left meanwhile.
        """
        with self._changed:
            while not self._closed:
                running = len(self._running())
                starting = self._take_fitting(self.settings.max_active - running)
                if starting or running:
                    self._active += len(starting)
                    for ticket in starting:
                        self._waits.add(ticket.queue_s)
                    return starting
                if not self._changed.wait(_LOOK_S if self._queued or self._active else None):
                    return []
            return None

    def _take_fitting(self, most: int) -> list[Ticket[Any]]:
        """Take up to ``most`` jobs from the queue, in order, while they fit.

        The queue's head is never overtaken by a job that needs memory, so none starves; jobs that need none (their
        caller holds it) may pass, or a caller that holds memory and a head that waits for it would wait for each
        other.
        """
        starting: list[Ticket[Any]] = []
        held_up = False
        for ticket in self._queued.in_order() if most > 0 else ():
            if len(starting) == most:
                break
            if (held_up and ticket.kv_bytes) or not self._budget.take(ticket.kv_bytes):
                held_up = True
            else:
                starting.append(ticket)
        for ticket in starting:
            self._queued.take(ticket)
        return starting

    def _retire(self, tickets: list[Ticket[Any]]) -> None:
        with self._changed:
            if tickets:
                self._retired = time.monotonic()
            for ticket in tickets:
                self._active -= 1
                self._budget.give(ticket.kv_bytes)
                self._job_seconds = time.monotonic() - (ticket.started or ticket.submitted)
        for ticket in tickets:
            ticket.settle()

    def _take_unwanted(self) -> list[Ticket[Any]]:
        """Remove from the queue what was cancelled or is late: it will never run, and others may have its place."""
        unwanted = [ticket for ticket in self._queued.in_order() if ticket.unwanted() is not None]
        if unwanted:
            self._queued.remove(unwanted)
        for ticket in unwanted:
            self._waits.add(ticket.queue_s)
        return unwanted

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
            left = self._take_all()
        for ticket in left:
            _end(ticket, error)

    def _take_all(self) -> list[Ticket[Any]]:
        """All that have not been settled, and perhaps some that have; none of them waits any more."""
        waiting = self._queued.in_order()
        self._queued.remove(waiting)
        return [*self._scheduler.tickets, *self._starting, *waiting]


def _end_unwanted(tickets: list[Ticket[Any]]) -> None:
    for ticket in tickets:
        _end(ticket, ticket.unwanted() or CancelledError("the caller went away"))


def _end(ticket: Ticket[Any], error: BaseException) -> None:
    ticket.fail(error)
    ticket.settle()
