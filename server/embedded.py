"""The services for a host that takes the calls itself: Ray Serve and KServe (``deploy/``) have sockets of their own.

As with HTTP (``server.openai_http``), a call runs through the interceptors and servicers of the gRPC server, so who may
call, quotas, admission, deadlines, telemetry and audit are the same. What the host does not hand on is missing: a
deadline comes as the metadata ``guardlet-timeout`` or not at all, and client certificates name no caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from guard.errors import InvalidInputError
from guard.v1 import generation_pb2, model_pb2, moderation_pb2
from server.app import App, begin
from server.call import Call
from server.drain import StopRequest
from server.interceptors.around import Around
from server.interceptors.decode import admitted, message_of
from server.invocation import Invocation, Invoker
from server.settings import Settings

Headers = Sequence[tuple[str, str]]
_FILES = (moderation_pb2, generation_pb2, model_pb2)
SERVICES = tuple(service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values())


@dataclass(frozen=True)
class Method:
    """A method of guard.v1. ``path`` is ``/package.Service/Method``."""

    path: str
    request_streaming: bool
    response_streaming: bool
    request: type[Message]


def _methods() -> dict[str, Method]:
    found = [(service, method) for service in SERVICES for method in service.methods]
    return {
        method.name: Method(
            f"/{service.full_name}/{method.name}",
            method.client_streaming,
            method.server_streaming,
            method.input_type._concrete_class,
        )
        for service, method in found
    }


#: By name, which no two services share.
METHODS = _methods()


class Embedded:
    """A server without a socket. ``open`` makes one; ``close`` ends it."""

    def __init__(self, app: App) -> None:
        """``app`` is not listening."""
        self._app = app
        self._inside = 0
        self._idle = asyncio.Event()
        self._calls = Invoker([found for found in app.interceptors if isinstance(found, Around)])
        services = zip(SERVICES, (app.moderation, app.generation, app.models), strict=True)
        self._handlers: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
            method.name: getattr(servicer, method.name) for service, servicer in services for method in service.methods
        }

    @classmethod
    async def open(cls, settings: Settings) -> Embedded:
        """Set this process up as ``guard serve`` does, and load the models.

        Raises SettingsError, MemoryPlanError, BundleError and what else loading raises.
        """
        loader, memory = begin(settings)
        app = App(settings, loader, memory, listening=False)
        embedded = cls(app)
        await app.start()
        try:
            await app.load()
        except BaseException:
            await embedded.close()
            raise
        return embedded

    @property
    def healthy(self) -> bool:
        """Whether every model of the settings serves, and no engine hangs. The host should replace it otherwise."""
        return self._app.health.serving() and not self._app.broken

    async def close(self) -> None:
        """Let the calls inside finish, for ``grace_s`` at most, and free everything. The host sends no more."""
        if self._inside:
            self._idle.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._app.settings.grace_s):
                    await self._idle.wait()
        stop = StopRequest()
        stop.ask(patient=False)
        await self._app.stop(stop)

    async def unary(self, name: str, body: bytes, headers: Headers) -> Message:
        """The answer of the method ``name`` to the message in ``body``. ``headers`` have lower-case names.

        Raises server.invocation.Refused, and CancelledError when cancelled, which stops the work.
        """
        answer: Message = await self._invoke(name, body, Invocation(headers), lambda this: self._decoded(name, body))
        return answer

    async def stream(
        self, name: str, requests: bytes | AsyncIterator[bytes], headers: Headers
    ) -> AsyncIterator[Message]:
        """What the method ``name`` answers, one by one. Raises as ``unary``; closing it stops the work."""
        ready: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        if isinstance(requests, bytes):
            body, invocation = requests, Invocation(headers, ready.put)
            work = self._invoke(name, body, invocation, lambda this: self._decoded(name, body))
        else:
            invocation = _Reading(headers, ready.put, requests)
            work = self._invoke(name, b"", invocation, lambda this: self._each_decoded(name, requests))
        working = asyncio.create_task(work)
        tasks: set[asyncio.Task[Any]] = {working}
        try:
            while not working.done() or not ready.empty():
                getting = asyncio.create_task(ready.get())
                tasks.add(getting)
                await asyncio.wait({getting, working}, return_when=asyncio.FIRST_COMPLETED)
                tasks.discard(getting)
                if getting.done():
                    yield getting.result()
                else:  # the work has ended; what it wrote last is still in the queue
                    getting.cancel()
            await working
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _invoke(self, name: str, body: bytes, invocation: Invocation, decode: Callable[[Call], Any]) -> Any:
        self._inside += 1
        try:
            return await self._calls.invoke(METHODS[name].path, body, invocation, decode, self._handlers[name])
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    def _decoded(self, name: str, data: bytes) -> Any:
        limit = self._app.settings.max_message_bytes
        if len(data) > limit:
            raise InvalidInputError("request", f"a message of {len(data)} bytes, the limit is {limit}")
        return message_of(data, METHODS[name].request.FromString)

    async def _each_decoded(self, name: str, parts: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in admitted(parts):
            yield self._decoded(name, data)


class _Reading(Invocation):
    """Of a method that takes a stream."""

    def __init__(
        self, headers: Headers, write: Callable[[Any], Awaitable[None]], requests: AsyncIterator[bytes]
    ) -> None:
        super().__init__(headers, write)
        self._requests = requests

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Hosts send theirs with the first answer."""

    async def read(self) -> Any:
        """The next request, not decoded; EOF at the end."""
        return await anext(self._requests, grpc.aio.EOF)


def in_words(status: status_pb2.Status) -> str:
    """What ``status`` says, for hosts that hand on a text and no details: ``worded``."""
    info, retry, retry_s = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in status.details:
        if not detail.Unpack(info) and detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return worded(info.reason, status.message, retry_s)


def worded(reason: str, message: str, retry_after_s: float | None) -> str:
    """``REASON: message; try again in 1.5 s``."""
    return f"{reason}: {message}" + ("" if retry_after_s is None else f"; try again in {retry_after_s:g} s")
