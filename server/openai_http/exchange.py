"""One HTTP request: its body is read within bounds, its work stops when its client leaves, and failures are answered in
OpenAI's form.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from guard.errors import OverloadedError
from server import call, log
from server.errors import SlowReaderError
from server.invocation import Refused
from server.limits import Gate, Limits
from server.openai_http import errors
from server.openai_http.errors import HttpError, Problem
from server.openai_http.settings import HttpSettings

#: A body that is too large is read so many times its limit, and not kept: most clients read no answer before they have
#: sent their question.
_READ_ON = 4
#: Requests whose bodies may be on their way at the same time; their bytes are what is bounded.
_MAX_READING = 1 << 16
_JSON = "application/json"


class Exchange:
    """A request, and the answer to it. ``headers`` have lower-case names, ``body`` is there once the answer begins."""

    def __init__(self, scope: Scope, send: Send, settings: HttpSettings) -> None:
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.path_params: Mapping[str, str] = scope.get("path_params", {})
        self.body = b""
        self.started = False
        self._send = send
        self._idle_s = settings.idle_s

    def header(self, name: str) -> str:
        """The first header of that name, or ""."""
        return next((value for own, value in self.headers if own == name), "")

    @property
    def request_id(self) -> str:
        """The client's own, in x-request-id; "" when there is none that may be one."""
        given = self.header("x-request-id")
        return given if call.is_request_id(given) else ""

    async def respond(self, status: int, content_type: str, body: bytes, headers: Mapping[str, str]) -> None:
        """The whole answer. Nothing may keep it on its way."""
        await self._start(status, {"content-type": content_type, "content-length": str(len(body)), **headers})
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, value: Mapping[str, Any], request_id: str = "") -> None:
        """The answer 200 with ``value``."""
        headers = {"x-request-id": request_id} if request_id else {}
        await self.respond(200, _JSON, _encoded(value), headers)

    async def event(self, value: Mapping[str, Any] | str, request_id: str = "") -> None:
        """An event of a stream; returns once the client's connection has room for more."""
        if not self.started:
            headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
            await self._start(200, headers | ({"x-request-id": request_id} if request_id else {}))
        data = value.encode() if isinstance(value, str) else _encoded(value)
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def end(self) -> None:
        """No more events."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, problem: Problem) -> None:
        """Tell the client: as the answer, or as the last event of a stream."""
        if not self.started:
            own = problem.body["error"]["guardlet"]["request_id"]
            headers = {**problem.headers, "x-request-id": own}
            if problem.status == 401:
                headers["www-authenticate"] = "Bearer"
            await self.respond(problem.status, _JSON, _encoded(problem.body), headers)
            return
        if problem.body["error"]["guardlet"]["reason"] == SlowReaderError.reason:
            return  # it does not read: an answer that ends without its end closes the connection
        async with asyncio.timeout(self._idle_s):
            await self.event(problem.body)
            await self.end()

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        fields = {"cache-control": "no-store", "x-content-type-options": "nosniff", **headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


class Endpoint:
    """The ASGI application of one path."""

    def __init__(self, answer: Callable[[Exchange], Awaitable[None]], settings: HttpSettings, reading: Gate) -> None:
        self._answer = answer
        self._settings = settings
        self._reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; whatever goes wrong becomes an answer too."""
        exchange = Exchange(scope, send, self._settings)
        try:
            if scope["method"] == "POST" and not await self._read(exchange, receive):
                return
            await _while_connected(self._answer(exchange), receive)
        except Refused as error:
            await exchange.fail(errors.of_status(error.status))
        except HttpError as error:
            await exchange.fail(errors.of_http(error, exchange.request_id or call.new_request_id()))
        except Exception as error:  # noqa: BLE001 - the last place that can keep an error's text inside
            request_id = exchange.request_id or call.new_request_id()
            log.event(logging.ERROR, "internal_error", error=error, method=scope["path"], request_id=request_id)
            await exchange.fail(errors.internal(request_id))

    async def _read(self, exchange: Exchange, receive: Receive) -> bool:
        """Read the body; returns False when the client left. Raises HttpError.

        Only JSON that says so: a web page of somebody else's cannot send that without being asked for leave first,
        which this server does not give.
        """
        if exchange.header("content-type").partition(";")[0].strip().lower() != _JSON:
            raise HttpError(415)
        if exchange.header("content-encoding").lower() not in ("", "identity"):
            raise HttpError(415)
        limit, size = self._settings.max_body_bytes, 0
        parts: list[bytes] = []
        with self._reading.admit(0) as permit:
            more = True
            while more:
                message = await self._receive(receive)
                if message["type"] == "http.disconnect":
                    return False
                part, more = message.get("body", b""), message.get("more_body", False)
                size += len(part)
                if size > limit:
                    parts.clear()
                    if not more or size > limit * _READ_ON:
                        raise HttpError(413)
                    continue
                try:
                    permit.add(len(part))
                except OverloadedError:
                    raise HttpError(429) from None
                parts.append(part)
            exchange.body = b"".join(parts)
        return True

    async def _receive(self, receive: Receive) -> Any:
        try:
            async with asyncio.timeout(self._settings.idle_s):
                return await receive()
        except TimeoutError:
            raise HttpError(408) from None


def reading_gate(settings: HttpSettings) -> Gate:
    """Bounds the bytes of all bodies that are on their way."""
    return Gate(Limits(_MAX_READING, settings.max_unread_bytes))


async def _while_connected(work: Awaitable[None], receive: Receive) -> None:
    """Await ``work``, which is cancelled when the client leaves; returns when it has ended."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
    if not working.cancelled():
        working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
