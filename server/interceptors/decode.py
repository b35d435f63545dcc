"""Innermost: from bytes to the message that the handler takes, once it is known that the call may come in.

Everything further out sees bytes only, so nothing that a caller without credentials, without quota or without room
sends is parsed. Bytes that are not the message they should be: INVALID_ARGUMENT; a deserializer of gRPC's that raises
would answer UNKNOWN with the text of the exception (grpcio 1.85.1).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from guard.errors import InvalidInputError
from server import call, status
from server.interceptors.around import Behavior, Context, Handler, rewrap

Deserializer = Callable[[bytes], Any]


class DecodeInterceptor(grpc.aio.ServerInterceptor):
    """Covers every method of the server, health and reflection included. Sets ``Call.request_id`` to the request's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Decode between the handler that is found for a call and everything around it."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        deserialize: Deserializer = handler.request_deserializer
        decoding = _decoding_stream if handler.request_streaming else _decoding_one
        return rewrap(handler, lambda behavior: decoding(behavior, deserialize), deserializer=bytes)


def _decoding_one(behavior: Behavior, deserialize: Deserializer) -> Behavior:
    async def decoded(data: bytes, context: Context) -> Any:
        return await behavior(await _decode(data, deserialize, context), context)

    return decoded


def _decoding_stream(behavior: Behavior, deserialize: Deserializer) -> Behavior:
    """Each message once its bytes have been admitted. Reflection's handler is an async generator, StreamClassify's a
    coroutine.
    """

    async def readable(parts: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        async for data in admitted(parts):
            yield await _decode(data, deserialize, context)

    async def decoded(parts: AsyncIterator[bytes], context: Context) -> None:
        answer: Any = behavior(readable(parts, context), context)
        if not inspect.isasyncgen(answer):
            await answer
            return
        async for response in answer:
            await context.write(response)

    return decoded


async def admitted(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """``parts`` of a stream, each once the call's permit has room for it. Raises OverloadedError."""
    async for data in parts:
        this = call.current.get(None)  # reflection has none
        if this is not None and this.permit is not None:
            this.permit.add(len(data))
        yield data


def message_of(data: bytes, deserialize: Deserializer) -> Any:
    """The message that ``data`` is. Raises InvalidInputError."""
    try:
        return deserialize(data)
    except (DecodeError, ValueError, RecursionError):
        problem = "is not a readable message of the type that this method takes"
        raise InvalidInputError("request", problem) from None


async def _decode(data: bytes, deserialize: Deserializer, context: Context) -> Any:
    this = call.current.get(None)  # health and reflection have none
    try:
        request = message_of(data, deserialize)
    except InvalidInputError as error:
        if this is not None:
            this.observer.failed(error.reason)
        await status.abort(context, status.failure(error, this.request_id if this else call.new_request_id()))
    if this is not None:
        call.current.set(replace(this, request_id=call.request_id_of(request, this.request_id)))
    return request
