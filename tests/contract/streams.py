"""Callers of StreamClassify."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import grpc.aio

from guard.v1 import moderation_pb2
from guard.v1.moderation_pb2 import StreamClassifyFinish, StreamClassifyRequest, StreamClassifyStart

from .running import Running, message

FINISH = StreamClassifyRequest(finish=StreamClassifyFinish())


@dataclass
class Streamed:
    """Everything that a stream said."""

    progress: list[moderation_pb2.StreamClassifyProgress]
    result: moderation_pb2.ClassifyResponse | None

    @property
    def released(self) -> int:
        """Bytes that may be shown, before the result is looked at."""
        return self.progress[-1].released_bytes if self.progress else 0

    @property
    def checks(self) -> list[tuple[int, int, int]]:
        """What must not depend on how the text arrives."""
        return [(each.judged_bytes, each.released_bytes, each.verdict) for each in self.progress]


def start(**fields: Any) -> StreamClassifyRequest:
    """A response to a question, checked as often as possible, unless ``fields`` say otherwise."""
    defaults: dict[str, Any] = {
        "messages": [message("Tell me a story")],
        "target": moderation_pb2.TARGET_RESPONSE,
        "check_every_tokens": 8,
    }
    return StreamClassifyRequest(start=StreamClassifyStart(**(defaults | fields)))


def steps(pieces: Iterable[str], **fields: Any) -> list[StreamClassifyRequest]:
    """A whole stream of text."""
    return [start(**fields), *(StreamClassifyRequest(text=piece) for piece in pieces), FINISH]


async def stream(
    server: Running, requests: Sequence[StreamClassifyRequest], heard: Streamed | None = None, timeout: float = 30
) -> Streamed:
    """Send everything and read everything, into ``heard`` if it is given; raises what gRPC raises."""
    heard = heard or Streamed([], None)
    call = server.moderation.StreamClassify(timeout=timeout)
    sending = asyncio.ensure_future(send(call, requests, heard))
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            assert heard.result is None, "the result is last"
            if response.WhichOneof("step") == "progress":
                heard.progress.append(response.progress)
            else:
                heard.result = response.result
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return heard


async def send(call: Any, requests: Sequence[StreamClassifyRequest], heard: Streamed) -> None:
    """As fast as the server takes them, once it has admitted the stream, and no more after its result: a call that ends
    while grpc.aio writes fails with an INTERNAL of its own.
    """
    for request in requests[:1]:
        await call.write(request)
        await call.initial_metadata()
    for request in requests[1:]:
        if heard.result is None:
            await call.write(request)
    await call.done_writing()


def split(text: str, chance: Random) -> list[str]:
    """``text`` in pieces, cut between any two code points."""
    places = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(len(text))))
    return [text[begin:end] for begin, end in pairwise([0, *places, len(text)])]
