"""Requests of GenerationService, and readers of its streams."""

from __future__ import annotations

from typing import Any

from guard.v1.generation_pb2 import GenerateRequest, StreamGenerateRequest, StreamGenerateResponse

from .running import Running, message


def prompt(**fields: Any) -> GenerateRequest:
    """A greedy request that says "hi", with ``fields``."""
    defaults: dict[str, Any] = {"messages": [message("hi")], "temperature": 0.0}
    return GenerateRequest(**(defaults | fields))


def streamed(**fields: Any) -> StreamGenerateRequest:
    """The same for StreamGenerate."""
    return StreamGenerateRequest.FromString(prompt(**fields).SerializeToString())


async def parts_of(server: Running, **fields: Any) -> list[StreamGenerateResponse]:
    """All responses of a stream."""
    return [part async for part in server.generation.StreamGenerate(streamed(**fields))]
