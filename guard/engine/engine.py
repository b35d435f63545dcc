"""The engine: one thread that steps jobs in turn, one model step at a time.

A job is a generator that yields after each model step (a prefill chunk, a decode step) and returns its result. Taking
turns keeps a short classification from waiting behind a long generation; a cancelled or late job is closed before its
next step, and its ``finally`` frees its KV cache.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from guard.engine.settings import EngineSettings
from guard.errors import CancelledError, DeadlineError, GuardError, InputTooLongError, OverloadedError, UnavailableError

T = TypeVar("T")
Job = Generator[None, None, T]


def retry_after(seconds: float) -> float:
    """What to tell a refused caller: an estimate, within reason."""
    return min(max(seconds, 0.1), 30.0)


class Ticket(Generic[T]):
    """A job's place in the engine. ``future`` gets its result or its error; ``cancel`` stops it within one step."""

    def __init__(self, job: Callable[[Ticket[T]], Job[T]], kv_bytes: int, deadline: float | None) -> None:
        self.future: Future[T] = Future()
        self.kv_bytes = kv_bytes
        self.deadline = deadline  # time.monotonic() seconds
        self.submitted = time.monotonic()
        self.started: float | None = None
        self._job = job
        self._steps: Job[T] | None = None
        self._cancelled = threading.Event()

    @classmethod
    def finished(cls, result: T) -> Ticket[T]:
        """A ticket whose future has ``result`` already: there is nothing to run."""
        ticket = cls(_nothing, 0, None)
        ticket.future.set_result(result)
        return ticket

    def cancel(self) -> None:
        """Ask for a stop; harmless when the job has ended."""
        self._cancelled.set()

    @property
    def queue_s(self) -> float:
        """Seconds from submission to the first step."""
        return (self.started or time.monotonic()) - self.submitted

    def step(self) -> bool:
        """Run one model step; True when the job has ended, one way or another."""
        try:
            if self._steps is None and not self.future.set_running_or_notify_cancel():
                return True
            if (reason := self.unwanted()) is not None:
                raise reason
            if self._steps is None:
                self.started = time.monotonic()
                self._steps = self._job(self)
            next(self._steps)
        except StopIteration as stop:
            self.future.set_result(stop.value)
            return True
        except Exception as error:  # noqa: BLE001 - whatever a job raises belongs to its caller, not to the engine
            self.fail(error)
            return True
        return False

    def fail(self, error: BaseException) -> None:
        """End the job with ``error``, freeing what it holds."""
        if self._steps is not None:
            self._steps.close()
        if self.future.done():
            return
        if self.future.running() or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def unwanted(self) -> GuardError | None:
        """Why nobody needs the result any more, if so."""
        if self._cancelled.is_set():
            return CancelledError("the caller went away")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return DeadlineError("the deadline passed before the answer was ready")
        return None


def _nothing(ticket: Ticket[T]) -> Job[T]:
    raise AssertionError("a finished ticket is not run")


class Engine:
    """Runs jobs on its own thread within the limits of its settings."""

    def __init__(self, settings: EngineSettings, name: str) -> None:
        self.settings = settings
        self._queued: deque[Ticket[Any]] = deque()
        self._active: deque[Ticket[Any]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._held_bytes = 0
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
        for other in unwanted:
            other.fail(other.unwanted() or CancelledError("the caller went away"))
        if full:
            raise OverloadedError(f"{self.settings.max_queued} requests are waiting, the limit", retry_after(wait))
        return ticket

    def hold(self, kv_bytes: int) -> None:
        """Reserve KV cache across jobs, until ``release``. Raises OverloadedError when so much is not free now."""
        with self._changed:
            if kv_bytes > self._free_kv_bytes():
                raise OverloadedError("the KV cache has no room", retry_after(self._job_seconds))
            self._held_bytes += kv_bytes

    def release(self, kv_bytes: int) -> None:
        """Give back what ``hold`` reserved."""
        with self._changed:
            self._held_bytes -= kv_bytes
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """False once closed, or if the thread died."""
        return not self._closed and self._thread.is_alive()

    @property
    def kv_bytes_in_use(self) -> int:
        """Bytes of KV cache reserved by active jobs and held across jobs."""
        with self._changed:
            return self.settings.kv_bytes - self._free_kv_bytes()

    @property
    def jobs(self) -> int:
        """Jobs waiting or active."""
        with self._changed:
            return len(self._queued) + len(self._active)

    def close(self) -> None:
        """Stop after the current step; jobs that have not ended fail with UnavailableError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException = UnavailableError("the engine was stopped")
        try:
            while self._wait_for_work():
                ticket = self._active[0]
                ended = ticket.step()
                with self._changed:
                    self._active.popleft()
                    if ended:
                        self._job_seconds = time.monotonic() - (ticket.started or ticket.submitted)
                    else:
                        self._active.append(ticket)
        except BaseException:  # a bug in the loop itself: nobody may be left waiting
            error = UnavailableError("the engine stopped unexpectedly")
            raise
        finally:
            self._fail_all(error)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._closed:
                self._activate()
                if self._active:
                    return True
                self._changed.wait()
            return False

    def _activate(self) -> None:
        """Move jobs from the queue, in order, while they fit.

        The queue's head is never overtaken by a job that needs memory, so none starves; jobs that need none (their
        caller holds it) may pass, or a caller that holds memory and a head that waits for it would wait for each
        other.
        """
        free = self._free_kv_bytes()
        waiting: deque[Ticket[Any]] = deque()
        while self._queued and len(self._active) < self.settings.max_active:
            ticket = self._queued.popleft()
            if ticket.kv_bytes > (0 if waiting else free):
                waiting.append(ticket)
                continue
            free -= ticket.kv_bytes
            self._active.append(ticket)
        self._queued.extendleft(reversed(waiting))

    def _take_unwanted(self) -> list[Ticket[Any]]:
        """Remove from the queue what was cancelled or is late: it would never run, and others may have its place."""
        unwanted = [ticket for ticket in self._queued if ticket.unwanted() is not None]
        self._queued = deque(ticket for ticket in self._queued if ticket not in unwanted)
        return unwanted

    def _free_kv_bytes(self) -> int:
        return self.settings.kv_bytes - self._held_bytes - sum(ticket.kv_bytes for ticket in self._active)

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
            left = [*self._active, *self._queued]
            self._active.clear()
            self._queued.clear()
        for ticket in left:
            ticket.fail(error)
