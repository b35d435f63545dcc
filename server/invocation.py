"""The interceptors around a servicer's method, for a call that did not come over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.rpc import status_pb2

from guard.errors import InvalidInputError
from server import call, status
from server.interceptors.around import Around

T = TypeVar("T")
#: A client says in this header how many seconds it will wait for the whole answer.
TIMEOUT_HEADER = "guardlet-timeout"


class Refused(grpc.aio.AbortError):
    """The call was ended with ``code`` and ``trailers``, which hold ``status``; all from ``server.status``."""

    def __init__(self, code: grpc.StatusCode, trailers: Sequence[tuple[str, str | bytes]]) -> None:
        packed = dict(trailers)[status.DETAILS_KEY]
        assert isinstance(packed, bytes)
        self.status = status_pb2.Status.FromString(packed)
        super().__init__(self.status.message)
        self.code = code
        self.trailers = trailers


class Invocation:
    """What interceptors and servicers see of a call: those parts of grpc.aio.ServicerContext that they use.

    ``headers`` have lower-case names. ``write`` takes the messages of a stream, and returns when there is room.
    """

    def __init__(
        self, headers: Sequence[tuple[str, str]], write: Callable[[Any], Awaitable[None]] | None = None
    ) -> None:
        self._headers = headers
        self._write = write
        self._code: grpc.StatusCode | int = 0

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """The headers."""
        return self._headers

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Nothing: client certificates name no caller here."""
        return {}

    def time_remaining(self) -> float | None:
        """Seconds that the client waits; None when it does not say. Raises InvalidInputError."""
        given = [value for name, value in self._headers if name == TIMEOUT_HEADER]
        if not given:
            return None
        try:
            seconds = float(given[0])
        except ValueError:
            seconds = 0.0
        if not seconds > 0.0:  # NaN too
            raise InvalidInputError(TIMEOUT_HEADER, "expected a number of seconds above 0")
        return seconds

    def code(self) -> grpc.StatusCode | int:
        """The status so far; 0 for nothing went wrong."""
        return self._code

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, str | bytes]]
    ) -> NoReturn:
        """End the call; raises Refused."""
        self._code = code
        raise Refused(code, trailing_metadata)

    async def write(self, message: Any) -> None:
        """Send a message of the stream."""
        assert self._write is not None
        await self._write(message)


class Invoker:
    """Calls methods inside the interceptors of the gRPC server, the outermost first."""

    def __init__(self, interceptors: Sequence[Around]) -> None:
        self._interceptors = interceptors

    async def invoke(
        self,
        method: str,
        body: bytes,
        context: Invocation,
        decode: Callable[[call.Call], Any],
        handler: Callable[[Any, Any], Awaitable[T]],
    ) -> T:
        """What ``handler``, a servicer's ``method`` (``/package.Service/Method``), answers to the message that
        ``decode`` makes of ``body``, once the call may come in. Raises Refused, and CancelledError when cancelled.
        """
        around: Any = context
        async with AsyncExitStack() as inside:
            for interceptor in self._interceptors:
                await inside.enter_async_context(interceptor.around(method, body, around))
            this = call.current.get()
            request = decode(this)
            call.current.set(replace(this, request_id=call.request_id_of(request, this.request_id)))
            return await handler(request, around)
        raise AssertionError("an interceptor swallowed an error")  # for mypy: __aexit__ of a stack may return True
