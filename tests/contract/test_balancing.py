"""Several servers behind one name: clients use all of them, and find new ones without losing a call."""

from __future__ import annotations

import asyncio
import time

import grpc

from guard.client import AsyncGuardClient
from guard.v1.generation_pb2 import FINISH_REASON_LENGTH, StreamGenerateRequest
from guard.verdict import Verdict

from .fakes import UNSAFE_MARK, FakeModels
from .running import Running, message, question, running, until


def answered(server: Running) -> int:
    """How many calls it has answered."""
    return int(server.app.telemetry.window.summary()["calls"])


async def test_calls_go_to_every_address_of_a_name_in_turn(models: FakeModels) -> None:
    async with running(models) as one, running(models) as other:
        async with AsyncGuardClient(f"ipv4:{one.app.address},{other.app.address}") as client:
            await until_both(client, one, other)
            before = answered(one), answered(other)
            found = await asyncio.gather(*(client.classify(f"{UNSAFE_MARK} {index}") for index in range(10)))
        assert {answer.verdict for answer in found} == {Verdict.UNSAFE}
        assert (answered(one) - before[0], answered(other) - before[1]) == (5, 5)


async def until_both(client: AsyncGuardClient, one: Running, other: Running) -> None:
    """A connection that is not there yet has no turn."""
    async with asyncio.timeout(10):
        while not answered(one) or not answered(other):
            await client.classify("hello")


async def test_an_old_connection_ends_without_a_call_that_fails(models: FakeModels) -> None:
    models.step_seconds = 0.02
    async with running(models, max_connection_age_s=0.5) as server:
        request = StreamGenerateRequest(messages=[message("hello")], max_tokens=100)  # 2 s, four times the age
        parts = [part async for part in server.generation.StreamGenerate(request, timeout=20)]
        assert parts[-1].finish_reason == FINISH_REASON_LENGTH
        began = time.monotonic()
        while time.monotonic() - began < 2:
            await server.moderation.Classify(question("hello"), timeout=20)
            await asyncio.sleep(0.1)
        await until(lambda: server.channel.get_state() is grpc.ChannelConnectivity.IDLE)


async def test_without_an_age_connections_stay(models: FakeModels) -> None:
    async with running(models) as server:
        await server.moderation.Classify(question("hello"), timeout=20)
        await asyncio.sleep(1)
        assert server.channel.get_state() is grpc.ChannelConnectivity.READY
