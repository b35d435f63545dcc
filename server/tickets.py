"""Between the event loop and the engine: submit without blocking the loop, wait, cancel when nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")
#: Requests of more bytes are large: tokenizing takes about a tenth of a second from here on.
LARGE_BYTES = 64 << 10
_SMALL_THREADS = 2


class Ticket(Protocol[T]):
    """Work that was submitted: an engine's ticket, or several that belong together."""

    @property
    def future(self) -> Future[T]:
        """Gets the result or the error."""

    @property
    def submitted(self) -> float:
        """When, in time.monotonic() seconds."""

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through models for it so far."""

    @property
    def cancel(self) -> Callable[[], None]:
        """Stops the work within one step; harmless at the end."""

    @property
    def pause(self) -> Callable[[], None]:
        """Makes no further step, from the next one on."""

    @property
    def unpause(self) -> Callable[[], None]:
        """Goes on where it was; harmless when it was not paused."""


class Submitter:
    """Submits on threads of its own, as a submission tokenizes: milliseconds for most, seconds for megabytes of text.

    Large requests have a lane of their own, so they delay one another and nobody else.
    """

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(_SMALL_THREADS, thread_name_prefix="submit")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="submit-large")

    async def submit(self, size: int, submission: Callable[[], Ticket[T]]) -> Ticket[T]:
        """Run ``submission`` for a request of ``size`` bytes; raises what it raises.

        When this coroutine is cancelled meanwhile, the ticket that still comes out is cancelled.
        """
        return await self.run(size, submission, lambda ticket: ticket.cancel())

    async def run(self, size: int, work: Callable[[], T], discard: Callable[[T], object]) -> T:
        """As ``submit``, for any ``work`` that tokenizes; a result that comes too late goes to ``discard``."""

        def drop(done: Future[T]) -> None:
            if not done.cancelled() and done.exception() is None:
                discard(done.result())

        future = (self._small if size <= LARGE_BYTES else self._large).submit(work)
        try:
            return await _settled(future)
        except asyncio.CancelledError:
            if not future.cancel():
                future.add_done_callback(drop)
            raise

    def close(self) -> None:
        """Wait for the submissions that run, and drop those that wait."""
        self._small.shutdown(cancel_futures=True)
        self._large.shutdown(cancel_futures=True)


async def result(ticket: Ticket[T]) -> T:
    """Wait for a ticket; raises what its future raises. When this coroutine is cancelled, so is the ticket."""
    try:
        return await _settled(ticket.future)
    except asyncio.CancelledError:
        ticket.cancel()
        raise


def _settled(future: Future[T]) -> Awaitable[T]:
    """As asyncio.wrap_future, but one-way: cancelling the wait leaves ``future`` alone, and what it ends with unseen.

    A shielded asyncio future would be left with an error that asyncio logs as never retrieved.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[T] = loop.create_future()

    def settle() -> None:
        if waiting.done():
            return
        if future.cancelled():
            waiting.cancel()
        elif (error := future.exception()) is not None:
            waiting.set_exception(error)
        else:
            waiting.set_result(future.result())

    def done(_: Future[T]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    future.add_done_callback(done)
    return waiting
