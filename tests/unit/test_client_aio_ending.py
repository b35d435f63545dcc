"""The asyncio client tells what the server said, also where grpc.aio has put its own word in that place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from guard.client.aio_ending import Ending

OWN = (grpc.StatusCode.INTERNAL, aio.Metadata(), "Internal error from Core")
BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, aio.Metadata(("grpc-retry-pushback-ms", "5")), "come back")
BROKEN = (grpc.StatusCode.INTERNAL, aio.Metadata(("grpc-status-details-bin", b"1")), "internal error (request 1)")
Status = tuple[grpc.StatusCode, aio.Metadata, str]


class FakeCall:
    """Does what grpc.aio does with a status."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []
        self._status: Status | None = None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def set(self, status: Status) -> None:
        self._status = status
        for callback in self._callbacks:
            callback(self)

    async def code(self) -> grpc.StatusCode:
        return (await self._known())[0]

    async def trailing_metadata(self) -> aio.Metadata:
        return (await self._known())[1]

    async def details(self) -> str:
        return (await self._known())[2]

    async def initial_metadata(self) -> aio.Metadata:
        return aio.Metadata()

    async def _known(self) -> Status:
        if self._status is None:
            await asyncio.sleep(0)
        assert self._status is not None
        return self._status


def raised(status: Status) -> aio.AioRpcError:
    code, trailing, details = status
    return aio.AioRpcError(code, aio.Metadata(), trailing, details)


@pytest.mark.parametrize("said", [BUSY, BROKEN])
async def test_a_word_over_the_servers_is_not_believed(said: Status) -> None:
    call = FakeCall()
    ending = Ending(call)
    call.set(said)
    call.set(OWN)
    told = await ending.of(raised(OWN))
    assert (told.code(), told.details()) == (said[0], said[2])
    assert tuple(told.trailing_metadata()) == tuple(said[1])


async def test_the_server_may_be_heard_a_little_later() -> None:
    call = FakeCall()
    ending = Ending(call)
    call.set(OWN)
    asyncio.get_running_loop().call_later(0.02, call.set, BUSY)
    assert (await ending.of(raised(OWN))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("only", [OWN, BUSY, BROKEN])
async def test_what_has_no_other_explanation_stays(only: Status) -> None:
    call = FakeCall()
    ending = Ending(call)
    call.set(only)
    error = raised(only)
    assert await ending.of(error) is error
