"""What a server ended a call with, which grpc.aio may forget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import grpc
from grpc import aio

#: Seconds that the server's word may come after that of this side: it has been received by then.
_GRACE_S = 0.2
T = TypeVar("T")


class Ended(Protocol):
    """What grpc.aio tells of a call that has ended."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...

    async def code(self) -> grpc.StatusCode: ...

    async def details(self) -> str: ...

    async def initial_metadata(self) -> Any: ...

    async def trailing_metadata(self) -> Any: ...


class Ending:
    """Remembers the server's status of ``call``.

    When a write fails because the call has just ended, grpc.aio puts an INTERNAL of its own in the place of the status
    that has come, or is about to (grpc/grpc#36066, grpcio 1.85.1). It runs the callbacks each time it sets one.
    """

    def __init__(self, call: Ended) -> None:
        self._told: aio.AioRpcError | None = None
        self._known = asyncio.Event()
        call.add_done_callback(self._note)

    async def of(self, error: aio.AioRpcError) -> aio.AioRpcError:
        """What the server said, if it said anything, instead of ``error``, which was raised by a read."""
        if not _is_own(error.code(), error.trailing_metadata()):
            return error
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._known.wait()
        except TimeoutError:
            return error
        return self._told or error

    def _note(self, call: Ended) -> None:
        code, trailing = _at_once(call.code()), _at_once(call.trailing_metadata())
        if self._known.is_set() or code is grpc.StatusCode.OK or _is_own(code, trailing):
            return
        self._told = aio.AioRpcError(code, _at_once(call.initial_metadata()), trailing, _at_once(call.details()))
        self._known.set()


def _is_own(code: grpc.StatusCode, trailing: Any) -> bool:
    """Whether it may be of grpc.aio's making; a server of ours that fails says more."""
    return code is grpc.StatusCode.INTERNAL and not len(trailing)


def _at_once(asking: Coroutine[Any, Any, T]) -> T:
    """The value of a coroutine that has nothing to wait for, as those above once the call has ended."""
    try:
        asking.send(None)
    except StopIteration as known:
        value: T = known.value
        return value
    asking.close()
    raise RuntimeError("the call has not ended")
