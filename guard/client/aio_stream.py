"""StreamClassify for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, Protocol

import grpc
from grpc import aio

from guard.client.aio_ending import Ended, Ending
from guard.client.errors import GuardClientError, typed_errors
from guard.client.held import HeldText
from guard.client.results import Classification, StreamProgress
from guard.v1 import moderation_pb2

#: Seconds to wait for the server's first sign; something between here and there may hold it back.
_ADMISSION_S = 1.0
Deltas = Iterable[str] | AsyncIterable[str]


class Call(Ended, Protocol):
    """What grpc.aio returns for a call with streams both ways. ``read`` returns aio.EOF at the end."""

    async def read(self) -> Any: ...

    async def write(self, request: moderation_pb2.StreamClassifyRequest) -> None: ...

    async def done_writing(self) -> None: ...

    def cancel(self) -> bool: ...


class AsyncClassificationStream:
    """As ``ClassificationStream``, for ``async for``. ``deltas`` is read by a task of its own."""

    def __init__(self, call: Call, start: moderation_pb2.StreamClassifyRequest, deltas: Deltas) -> None:
        self._call = call
        self._ending = Ending(call)
        self._start = start
        self._deltas = deltas
        self._held = HeldText()
        self._failure: Exception | None = None
        self._writing: asyncio.Future[None] | None = None

    async def __aiter__(self) -> AsyncIterator[StreamProgress]:
        sender = asyncio.ensure_future(self._send())
        try:
            with typed_errors():
                while (response := await self._read()) is not aio.EOF:
                    progress = self._held.read(response)
                    if progress is not None:
                        yield progress
                    elif self._held.blocked:
                        break  # deltas may take their time, and the server waits for them a little
        except (GuardClientError, asyncio.CancelledError):
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await self._end()

    async def result(self) -> Classification:
        """The worst of all checks; reads what is left. Raises NoAnswerError when the stream was cut off."""
        if not self._held.ended:
            async for _ in self:
                pass
        return self._held.result()

    async def released(self) -> AsyncIterator[str]:
        """The text, piece by piece, as it may be shown. Raises UnsafeTextError where the rest may not."""
        async for progress in self:
            if progress.text:
                yield progress.text
        if rest := self._held.rest():
            yield rest

    def cancel(self) -> None:
        """Stop judging."""
        self._call.cancel()

    async def _read(self) -> Any:
        try:
            return await self._call.read()
        except aio.AioRpcError as error:
            raise await self._ending.of(error) from None

    async def _send(self) -> None:
        try:
            await self._write(self._start)
            # Admitted, or refused before any text is on its way: grpc.aio forgets why it was refused while it writes.
            await asyncio.wait({asyncio.ensure_future(self._call.initial_metadata())}, timeout=_ADMISSION_S)
            async for delta in _each(self._deltas):
                for step in self._held.add(delta):
                    await self._write(step)
            await self._write(self._held.complete())
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the call has ended; whoever reads is told why
        except Exception as error:  # noqa: BLE001 - the caller's own error, carried to the caller's task
            self._failure = error
            self._call.cancel()  # half of a text must not be judged as if it were all

    async def _write(self, step: moderation_pb2.StreamClassifyRequest) -> None:
        """grpc.aio cancels the whole call when a write is cancelled, so a write that has begun is left alone."""
        self._writing = asyncio.ensure_future(self._call.write(step))
        await asyncio.shield(self._writing)

    async def _end(self) -> None:
        """Close this side, for which the server waits a little; an answer that was not waited for is cancelled."""
        if not self._held.ended:
            self._call.cancel()
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        with suppress(grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            await self._call.done_writing()
            await self._call.read()


async def _each(deltas: Deltas) -> AsyncIterator[str]:
    if isinstance(deltas, AsyncIterable):
        async for delta in deltas:
            yield delta
    else:
        for delta in deltas:
            yield delta
