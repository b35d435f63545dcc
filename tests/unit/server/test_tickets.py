from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from guard.engine.sequence import Ticket
from guard.errors import ModelOutputError
from server import tickets
from server.tickets import LARGE_BYTES, Submitter


def ticket() -> Ticket[str]:
    return Ticket(lambda this: iter(()), 0, None)  # type: ignore[arg-type, return-value]


def cancelled(of: Ticket[Any]) -> bool:
    return of._cancelled.is_set()


@pytest.fixture
def submitter() -> Iterator[Submitter]:
    made = Submitter()
    yield made
    made.close()


async def test_result_and_error_arrive() -> None:
    good, bad = ticket(), ticket()
    threading.Timer(0.05, good.future.set_result, ["text"]).start()
    threading.Timer(0.05, bad.future.set_exception, [ModelOutputError("no")]).start()
    assert await tickets.result(good) == "text"
    with pytest.raises(ModelOutputError):
        await tickets.result(bad)


async def test_cancelling_the_wait_cancels_the_ticket_but_not_its_future() -> None:
    """The future belongs to the engine, which may set it at any time."""
    one = ticket()
    waiting = asyncio.ensure_future(tickets.result(one))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled(one)
    assert not one.future.done()
    one.future.set_exception(ModelOutputError("late"))
    await asyncio.sleep(0.01)


async def test_submit_raises_what_the_submission_raises(submitter: Submitter) -> None:
    def fail() -> Ticket[str]:
        raise ModelOutputError("no")

    with pytest.raises(ModelOutputError):
        await submitter.submit(0, fail)


async def test_a_ticket_that_comes_too_late_is_cancelled(submitter: Submitter) -> None:
    late = ticket()

    def slow() -> Ticket[str]:
        time.sleep(0.1)
        return late

    waiting = asyncio.ensure_future(submitter.submit(0, slow))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.2)
    assert cancelled(late)


async def test_a_submission_that_has_not_begun_never_does(submitter: Submitter) -> None:
    ran = []

    def busy() -> Ticket[str]:
        time.sleep(0.2)
        return ticket()

    def noted() -> Ticket[str]:
        ran.append(True)
        return ticket()

    running = [asyncio.ensure_future(submitter.submit(0, busy)) for _ in range(2)]
    waiting = asyncio.ensure_future(submitter.submit(0, noted))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(*running)
    await asyncio.sleep(0.05)
    assert waiting.cancelled()
    assert not ran


async def test_large_requests_do_not_delay_small_ones(submitter: Submitter) -> None:
    free = threading.Event()

    def stuck() -> Ticket[str]:
        assert free.wait(5)
        return ticket()

    large = [asyncio.ensure_future(submitter.submit(LARGE_BYTES + 1, stuck)) for _ in range(5)]
    assert await asyncio.wait_for(submitter.submit(LARGE_BYTES, ticket), 1)
    free.set()
    await asyncio.gather(*large)


async def test_what_comes_too_late_is_discarded(submitter: Submitter) -> None:
    discarded: list[str] = []

    def slow() -> str:
        time.sleep(0.1)
        return "session"

    waiting = asyncio.ensure_future(submitter.run(0, slow, discarded.append))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.sleep(0.2)
    assert discarded == ["session"]
    assert await submitter.run(0, lambda: "kept", discarded.append) == "kept"
    assert discarded == ["session"]


async def test_an_error_that_comes_too_late_is_nobodys(submitter: Submitter) -> None:
    """The caller left while its request was refused: no line in the log for that."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    def slow() -> str:
        time.sleep(0.1)
        raise ModelOutputError("no")

    waiting = asyncio.ensure_future(submitter.run(0, slow, lambda result: None))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.sleep(0.2)
    assert waiting.cancelled()
    del waiting
    gc.collect()
    assert reported == []


async def test_what_is_dropped_at_the_end_is_cancelled() -> None:
    submitter, free = Submitter(), threading.Event()
    waiting = [asyncio.ensure_future(submitter.run(0, free.wait, lambda result: None)) for _ in range(3)]
    await asyncio.sleep(0.02)
    threading.Timer(0.05, free.set).start()
    submitter.close()
    assert await asyncio.gather(*waiting[:2]) == [True, True]
    with pytest.raises(asyncio.CancelledError):
        await waiting[2]
