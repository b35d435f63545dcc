"""A text that is being written by the server, for callers that block and for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from guard.client.convert_generation import StreamReader, read_delta
from guard.client.errors import typed_errors
from guard.client.generation import Delta, GenerationResult
from guard.v1 import generation_pb2


class Call(Protocol):
    """What grpc returns for a call with a stream of responses."""

    def __iter__(self) -> Iterator[generation_pb2.StreamGenerateResponse]: ...

    def cancel(self) -> bool: ...


class AsyncCall(Protocol):
    """What grpc.aio returns for a call with a stream of responses."""

    def __aiter__(self) -> AsyncIterator[generation_pb2.StreamGenerateResponse]: ...

    def cancel(self) -> bool: ...


class GenerationStream:
    """The pieces of a text that is being written. Leaving early? ``cancel()``, and the server stops computing."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._reader = StreamReader()

    def __iter__(self) -> Iterator[Delta]:
        with typed_errors():
            for response in self._call:
                self._reader.add(response)
                if (delta := read_delta(response)) is not None:
                    yield delta

    def result(self) -> GenerationResult:
        """The whole text, once the pieces are read; reads what is left. Raises NoAnswerError when it was cut off."""
        for _ in self:
            pass
        return self._reader.result()

    def cancel(self) -> None:
        """Stop the generation."""
        self._call.cancel()


class AsyncGenerationStream:
    """As ``GenerationStream``, for ``async for``."""

    def __init__(self, call: AsyncCall) -> None:
        self._call = call
        self._reader = StreamReader()
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[Delta]:
        with typed_errors():
            async for response in self._call:
                self._reader.add(response)
                if (delta := read_delta(response)) is not None:
                    yield delta
        self._ended = True

    async def result(self) -> GenerationResult:
        """The whole text, once the pieces are read; reads what is left. Raises NoAnswerError when it was cut off."""
        if not self._ended:  # grpc.aio does not let a finished call be iterated again
            async for _ in self:
                pass
        return self._reader.result()

    def cancel(self) -> None:
        """Stop the generation."""
        self._call.cancel()
