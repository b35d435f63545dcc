"""The engine: one thread that runs one model's jobs, within limits of number and memory.

ONNX Runtime uses all the cores in one call, so models are not run in parallel: jobs ask for model steps, and the
scheduler serves them together or in turn. A cancelled or late job is closed before its next step, which frees its KV
cache.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from guard.engine.budget import KvBudget
from guard.engine.runner import Runner
from guard.engine.scheduler import Scheduler
from guard.engine.sequence import Job, T, Ticket
from guard.engine.settings import EngineSettings
from guard.engine.stats import WAIT_BOUNDS, EngineStats, Tally
from guard.errors import CancelledError, DeadlineError, InputTooLongError, OverloadedError, UnavailableError

#: Seconds between two looks at a queue that waits for memory which nobody active will give back.
_LOOK_S = 0.1


def retry_after(seconds: float) -> float:
    """What to tell a refused caller: an estimate, within reason."""
    return min(max(seconds, 0.1), 30.0)


class Engine:
    """Runs jobs on its own thread within the limits of its settings."""

    def __init__(self, runner: Runner, settings: EngineSettings, name: str) -> None:
        self.settings = settings
        self._queued: deque[Ticket[Any]] = deque()
        self._scheduler = Scheduler(runner, settings, time.monotonic)
        self._budget = KvBudget(settings.kv_bytes)
        self._active = 0
        self._waits = Tally(WAIT_BOUNDS)  # seconds; added to under the lock
        self._changed = threading.Condition()  # over the queue, the budget and the number of active jobs
        self._closed = False
        self._job_seconds = 0.0  # of the last finished job, to tell refused callers when to come back
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    def submit(
        self, job: Callable[[Ticket[T]], Job[T]], *, kv_bytes: int = 0, deadline: float | None = None
    ) -> Ticket[T]:
        """Queue a job that needs ``kv_bytes`` of KV cache; ``deadline`` is in time.monotonic() seconds.

        Raises OverloadedError when the queue is full, DeadlineError when the deadline has passed, InputTooLongError
        when the KV cache could never fit, UnavailableError when the engine is closed.
        """
        if kv_bytes > self.settings.kv_bytes:
            raise InputTooLongError("messages", kv_bytes, self.settings.kv_bytes)
        ticket = Ticket(job, kv_bytes, deadline)
        if deadline is not None and ticket.submitted >= deadline:
            raise DeadlineError("the deadline has passed")
        with self._changed:
            if not self.alive:
                raise UnavailableError("the engine is not running")
            unwanted = self._take_unwanted() if len(self._queued) >= self.settings.max_queued else []
            full = len(self._queued) >= self.settings.max_queued
            wait = self._job_seconds * len(self._queued)
            if not full:
                self._queued.append(ticket)
                self._changed.notify()
        _end_unwanted(unwanted)
        if full:
            raise OverloadedError(f"{self.settings.max_queued} requests are waiting, the limit", retry_after(wait))
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
        self._thread.join()

    def _run(self) -> None:
        error: BaseException = UnavailableError("the engine was stopped")
        try:
            while (starting := self._wait_for_work()) is not None:
                self._scheduler.round(starting)
                self._retire(self._scheduler.take_ended())
                with self._changed:
                    unwanted = self._take_unwanted()
                _end_unwanted(unwanted)
        except BaseException:  # a bug in the loop itself: nobody may be left waiting
            error = UnavailableError("the engine stopped unexpectedly")
            raise
        finally:
            self._fail_all(error)

    def _wait_for_work(self) -> list[Ticket[Any]] | None:
        """The jobs to start now, once there is anything to do; None when the engine is closed.

        None of them after ``_LOOK_S`` of waiting for held memory: callers in the queue may have left meanwhile.
        """
        with self._changed:
            while not self._closed:
                starting = self._take_fitting()
                if starting or self._active:
                    self._active += len(starting)
                    for ticket in starting:
                        self._waits.add(ticket.queue_s)
                    return starting
                if not self._changed.wait(_LOOK_S if self._queued else None):
                    return []
            return None

    def _take_fitting(self) -> list[Ticket[Any]]:
        """Take jobs from the queue, in order, while they fit.

        The queue's head is never overtaken by a job that needs memory, so none starves; jobs that need none (their
        caller holds it) may pass, or a caller that holds memory and a head that waits for it would wait for each
        other.
        """
        starting: list[Ticket[Any]] = []
        waiting: deque[Ticket[Any]] = deque()
        while self._queued and self._active + len(starting) < self.settings.max_active:
            ticket = self._queued.popleft()
            if (waiting and ticket.kv_bytes) or not self._budget.take(ticket.kv_bytes):
                waiting.append(ticket)
            else:
                starting.append(ticket)
        self._queued.extendleft(reversed(waiting))
        return starting

    def _retire(self, tickets: list[Ticket[Any]]) -> None:
        with self._changed:
            for ticket in tickets:
                self._active -= 1
                self._budget.give(ticket.kv_bytes)
                self._job_seconds = time.monotonic() - (ticket.started or ticket.submitted)
        for ticket in tickets:
            ticket.settle()

    def _take_unwanted(self) -> list[Ticket[Any]]:
        """Remove from the queue what was cancelled or is late: it will never run, and others may have its place."""
        unwanted = [ticket for ticket in self._queued if ticket.unwanted() is not None]
        self._queued = deque(ticket for ticket in self._queued if ticket not in unwanted)
        for ticket in unwanted:
            self._waits.add(ticket.queue_s)
        return unwanted

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
            left = [*self._scheduler.tickets, *self._queued]
            self._queued.clear()
        for ticket in left:
            _end(ticket, error)


def _end_unwanted(tickets: list[Ticket[Any]]) -> None:
    for ticket in tickets:
        _end(ticket, ticket.unwanted() or CancelledError("the caller went away"))


def _end(ticket: Ticket[Any], error: BaseException) -> None:
    ticket.fail(error)
    ticket.settle()
