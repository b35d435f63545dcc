"""What the engine runs: jobs that ask for model steps, and the tickets that their callers hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from guard.engine.cost import Done, Work
from guard.engine.kv_cache import KvCache
from guard.errors import CancelledError, DeadlineError, GuardError

T = TypeVar("T")
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Forward:
    """Append ``token_ids`` to ``cache``. The job is sent the logits float32 [len(wanted), rows] after the tokens at the
    (ascending) indexes ``wanted``. Many tokens are computed in chunks, between other jobs' steps.
    """

    cache: KvCache
    token_ids: Sequence[int]
    wanted: Sequence[int]


@dataclass(frozen=True)
class Decode:
    """Append one token to each of ``caches``. The job is sent the logits float32 [len(caches), rows].

    With a single cache, ``draft`` may propose what follows. Where the scheduler thinks it worth while, the cache gets
    the draft too and the job is sent [1 + len(draft), rows]; it truncates the cache to what it accepts.
    """

    caches: tuple[KvCache, ...]
    token_ids: tuple[int, ...]
    draft: tuple[int, ...] = ()


#: None gives the others their turn.
Request = Forward | Decode | None
Job = Generator[Request, Float32, T]
_NO_LOGITS: Float32 = np.empty((0, 0), np.float32)
NO_WORK = Work()


class Ticket(Generic[T]):
    """A job's place in the engine. ``future`` gets its result or its error; ``cancel`` stops it within one step.

    ``pause`` keeps it from further steps until ``unpause``: it holds its memory, and others have its turns. All three
    may be called on any thread.

    For the engine: ``start`` and ``resume`` run the job until it has ``ended``; ``settle`` tells the caller, once what
    the job held has been given back; ``on_change`` is called when a job that took no turns may have to.
    """

    def __init__(
        self,
        job: Callable[[Ticket[T]], Job[T]],
        kv_bytes: int,
        deadline: float | None,
        work: Work = NO_WORK,
        caller: str = "",
    ) -> None:
        self.future: Future[T] = Future()
        self.kv_bytes = kv_bytes
        self.deadline = deadline  # time.monotonic() seconds
        self.work = work
        self.done = Done()
        self.caller = caller
        self.paused = False
        self.on_change: Callable[[], None] = _no_news
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.ended = False
        self.succeeded = False  # it ended with a result
        self._job = job
        self._steps: Job[T] | None = None
        self._settle: Callable[[], None] = _no_news
        self._cancelled = threading.Event()

    @classmethod
    def finished(cls, result: T) -> Ticket[T]:
        """A ticket whose future has ``result`` already: there is nothing to run."""
        ticket = cls(_nothing, 0, None)
        ticket.ended = True
        ticket.future.set_result(result)
        return ticket

    def cancel(self) -> None:
        """Ask for a stop; harmless when the job has ended."""
        self._cancelled.set()
        self.on_change()

    def pause(self) -> None:
        """No further step, from the next one on."""
        self.paused = True

    def unpause(self) -> None:
        """Go on where it was."""
        if self.paused:
            self.paused = False
            self.on_change()

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model for it so far, whether it comes to a result or not."""
        return self.done.tokens

    @property
    def queue_s(self) -> float:
        """Seconds from submission to the first step."""
        return (self.started or time.monotonic()) - self.submitted

    def unwanted(self) -> GuardError | None:
        """Why nobody needs the result any more, if so."""
        if self._cancelled.is_set() or self.future.cancelled():
            return CancelledError("the caller went away")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return DeadlineError("the deadline passed before the answer was ready")
        return None

    def start(self) -> Request:
        """Run the job to its first request; ``ended`` tells whether there is one."""
        if not self._claim():
            return None
        if (reason := self.unwanted()) is not None:
            self.fail(reason)
            return None
        self.started = time.monotonic()
        self._steps = self._job(self)
        return self._run(next)

    def resume(self, logits: Float32 = _NO_LOGITS) -> Request:
        """Give the job what it asked for and run it to its next request; ``ended`` tells whether there is one."""
        return self._run(lambda steps: steps.send(logits))

    def fail(self, error: BaseException) -> None:
        """End the job with ``error``, freeing what it holds."""
        if self._steps is not None:
            self._steps.close()
        if not self.ended and self._claim():
            self._end(lambda: self.future.set_exception(error))

    def settle(self) -> None:
        """Let ``future`` have the result or the error of the job that has ended."""
        with suppress(InvalidStateError):  # it was abandoned, and its caller told
            self._settle()

    def abandon(self, error: BaseException) -> None:
        """Tell the caller ``error`` now, on any thread, whatever the job does; should it go on, it is closed before its
        next step and its result is dropped.
        """
        self._cancelled.set()
        with suppress(InvalidStateError):  # it had just been settled
            self.future.set_exception(error)

    def _run(self, step: Callable[[Job[T]], Request]) -> Request:
        assert self._steps is not None
        try:
            return step(self._steps)
        except StopIteration as stop:
            result: T = stop.value
            self.succeeded = True
            self._end(lambda: self.future.set_result(result))
        except Exception as error:  # noqa: BLE001 - whatever a job raises belongs to its caller, not to the engine
            self.fail(error)
        return None

    def _claim(self) -> bool:
        """From now on the future cannot be cancelled; False when it was, or was settled by ``abandon``."""
        if self.future.running():
            return True
        abandoned = self.future.done() and not self.future.cancelled()
        if not abandoned and self.future.set_running_or_notify_cancel():
            return True
        self.ended = True
        return False

    def _end(self, settle: Callable[[], None]) -> None:
        self.ended, self._settle = True, settle


def _no_news() -> None:
    """There is nobody to tell."""


def _nothing(ticket: Ticket[T]) -> Job[T]:
    raise AssertionError("a finished ticket is not run")
