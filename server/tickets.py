"""Between the event loop and the engine: submit without blocking the loop, wait, cancel when nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

from guard.engine.engine import Ticket

T = TypeVar("T")


async def submit(executor: Executor, submission: Callable[[], Ticket[T]]) -> Ticket[T]:
    """Run ``submission`` (it tokenizes: milliseconds to seconds) on ``executor``; raises what it raises.

    When this coroutine is cancelled meanwhile, the ticket that still comes out is cancelled.
    """
    future = executor.submit(submission)
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        if not future.cancel():
            future.add_done_callback(_cancel_ticket)
        raise


async def result(ticket: Ticket[T]) -> T:
    """Wait for a ticket; raises what its future raises. When this coroutine is cancelled, so is the ticket."""
    try:
        return await _settled(ticket.future)
    except asyncio.CancelledError:
        ticket.cancel()
        raise


def _cancel_ticket(future: Future[Ticket[T]]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().cancel()


def _settled(future: Future[T]) -> Awaitable[T]:
    """As asyncio.wrap_future, but one-way: cancelling the wait leaves ``future`` to the engine."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[T] = loop.create_future()

    def settle() -> None:
        if waiting.done():
            return
        error = future.exception()
        if error is not None:
            waiting.set_exception(error)
        else:
            waiting.set_result(future.result())

    def done(_: Future[T]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    future.add_done_callback(done)
    return waiting
