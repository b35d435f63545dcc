"""Whoever writes on while its stream ends is told why. The server is another process: with one event loop for both
sides nobody writes just then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence

import grpc
import grpc.aio
import pytest

from guard.v1.moderation_pb2 import StreamClassifyRequest

from .process import Client, ready, started
from .running import refusal
from .streams import start, steps

PIECES = ["and more "] * 200
#: How often each is tried: without the server's patience about every second one lost its reason.
TIMES = 24
#: grpc.aio itself puts its own word in place of the server's now and then, when a write fails late
#: (grpc/grpc#36066; ``guard.client`` undoes it, these bare stubs do not).
LOST_AT_MOST = TIMES // 4


async def answer(client: Client, sent: Sequence[StreamClassifyRequest]) -> None:
    """Write as fast as grpc.aio takes it, whatever the server says meanwhile."""

    async def all_of_it() -> AsyncIterator[StreamClassifyRequest]:
        for step in sent:
            yield step

    async for _ in client.moderation.StreamClassify(all_of_it(), timeout=30):
        pass


async def ending(call: Awaitable[None]) -> grpc.aio.AioRpcError:
    """How a call failed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_writer_is_told_why_its_stream_ends() -> None:
    """Failure test 26."""
    whole = steps(PIECES, check_every_tokens=64)
    wrong = {0: whole[1:], 3: [*whole[:3], start(), *whole[3:]], 50: [*whole[:50], start(), *whole[50:]]}
    async with started() as process:
        client = await ready(process)
        for sent in wrong.values():
            lost = 0
            for _ in range(TIMES // 4):
                for error in await asyncio.gather(*(ending(answer(client, sent)) for _ in range(4))):
                    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
                        lost += 1
                    else:
                        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                        assert list(refusal(error).fields) == ["start"]
            assert lost <= LOST_AT_MOST
        await client.channel.close()
        assert not [event for event in process.events if event["level"] == "error"]


async def test_who_waits_for_an_answer_is_refused_at_once() -> None:
    async with started() as process:
        client = await ready(process)
        took = []
        for _ in range(5):
            call = client.moderation.StreamClassify(timeout=30)
            began = time.monotonic()
            await call.write(start(policy_name="none of that name"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            took.append(time.monotonic() - began)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert min(took) < 0.5
        await client.channel.close()
