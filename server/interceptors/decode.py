"""Bytes that are not the message they should be: INVALID_ARGUMENT.

gRPC itself would answer UNKNOWN with the text of the exception (grpcio 1.85.1). So the deserializer hands on a marker
instead of raising, and the handler is not called.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from guard.errors import InvalidInputError
from server import call, status
from server.interceptors.around import Behavior, Context, Handler, rewrap

_BROKEN: Final = object()


class DecodeInterceptor(grpc.aio.ServerInterceptor):
    """Covers every method of the server, health and reflection included."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the deserializer and the handler that are found for a call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        wrap = _check_stream if handler.request_streaming else _check_one
        return rewrap(handler, wrap, deserializer=_careful(handler.request_deserializer))


def _careful(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize_or_mark(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError, RecursionError):
            return _BROKEN

    return deserialize_or_mark


def _check_one(behavior: Behavior) -> Behavior:
    async def checked(request: Any, context: Context) -> Any:
        if request is _BROKEN:
            await _refuse(context)
        return await behavior(request, context)

    return checked


def _check_stream(behavior: Behavior) -> Behavior:
    """Reflection's handler is an async generator, StreamClassify's a coroutine."""

    async def readable(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            if request is _BROKEN:
                await _refuse(context)
            yield request

    async def checked(requests: AsyncIterator[Any], context: Context) -> None:
        answer: Any = behavior(readable(requests, context), context)
        if not inspect.isasyncgen(answer):
            await answer
            return
        async for response in answer:
            await context.write(response)

    return checked


async def _refuse(context: Context) -> None:
    this = call.current.get(None)
    error = InvalidInputError("request", "is not a readable message of the type that this method takes")
    if this is not None:
        this.observer.failed(error.reason)
    await status.abort(context, status.failure(error, this.request_id if this else call.request_id_of(None)))
