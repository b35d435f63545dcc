"""The server as a process: how it starts, how it stops, and what it leaves behind."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import grpc
import pytest

from guard.v1.generation_pb2 import FINISH_REASON_LENGTH, GenerateRequest
from guard.v1.moderation_pb2 import VERDICT_UNSAFE

from .fakes import UNSAFE_MARK
from .process import Client, ready, resident_mib, started
from .running import message, question


def long(tokens: int) -> GenerateRequest:
    return GenerateRequest(messages=[message("x")], max_tokens=tokens, temperature=0.0)


async def test_sigterm_drains() -> None:
    """Failure test 7: NOT_SERVING at once, new calls are served during the delay, those in flight finish, and the exit
    status is 0 within the grace.
    """
    async with started(GUARD_DRAIN_DELAY_S="0.5", GUARD_GRACE_S="10", FAKE_STEP_SECONDS="0.02") as process:
        client = await ready(process)
        assert await client.serving()
        in_flight = asyncio.ensure_future(client.generation.Generate(long(60)))
        await asyncio.sleep(0.2)
        process.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        await process.event("draining")
        assert not await client.serving()
        assert time.monotonic() - began < 0.5
        late = await client.moderation.Classify(question(f"late {UNSAFE_MARK}"))
        assert late.verdict == VERDICT_UNSAFE
        answer = await in_flight
        assert answer.finish_reason == FINISH_REASON_LENGTH
        assert answer.usage.completion_tokens == 60
        assert await process.exit_status() == 0
        assert process.events[-1]["event"] == "stopped"
        assert time.monotonic() - began < 10
        await client.channel.close()


async def test_after_the_delay_new_calls_are_refused_while_old_ones_finish() -> None:
    """Failure test 7."""
    async with started(GUARD_DRAIN_DELAY_S="0", FAKE_STEP_SECONDS="0.02") as process:
        client = await ready(process)
        in_flight = asyncio.ensure_future(client.generation.Generate(long(80)))
        await asyncio.sleep(0.2)
        process.process.send_signal(signal.SIGTERM)
        await process.event("draining")
        await asyncio.sleep(0.2)
        other = Client((await process.event("ready"))["address"])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other.moderation.Classify(question("late"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await in_flight).usage.completion_tokens == 80
        assert await process.exit_status() == 0
        await client.channel.close()
        await other.channel.close()


async def test_a_second_signal_hurries() -> None:
    """Failure test 7: it waits neither for the delay nor for the calls in flight, and the exit status is 0 still."""
    async with started(GUARD_DRAIN_DELAY_S="20", GUARD_GRACE_S="20", FAKE_STEP_SECONDS="0.05") as process:
        client = await ready(process)
        in_flight = asyncio.ensure_future(client.generation.Generate(long(4000)))
        await asyncio.sleep(0.2)
        process.process.send_signal(signal.SIGTERM)
        await process.event("draining")
        began = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await in_flight
        assert await process.exit_status() == 0
        assert time.monotonic() - began < 3
        await client.channel.close()


async def test_calls_that_outlast_the_grace_are_cut_off() -> None:
    """Failure test 7: the exit status is 0 within the grace."""
    async with started(GUARD_DRAIN_DELAY_S="0", GUARD_GRACE_S="0.5", FAKE_STEP_SECONDS="0.05") as process:
        client = await ready(process)
        in_flight = asyncio.ensure_future(client.generation.Generate(long(4000)))
        await asyncio.sleep(0.2)
        process.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await in_flight
        assert await process.exit_status() == 0
        await client.channel.close()


async def test_ctrl_c_does_not_wait_for_the_delay() -> None:
    async with started(GUARD_DRAIN_DELAY_S="20") as process:
        await process.event("ready")
        began = time.monotonic()
        process.process.send_signal(signal.SIGINT)
        assert await process.exit_status() == 0
        assert time.monotonic() - began < 3


async def test_a_model_that_does_not_load_is_named() -> None:
    async with started(FAKE_FAIL="1") as process:
        assert await process.exit_status() == 1
        (failed,) = [event for event in process.events if event["event"] == "load_failed"]
        assert failed["message"] == "model.onnx: the hash differs"


async def test_an_address_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with started(GUARD_ADDRESS=f"127.0.0.1:{taken.getsockname()[1]}") as process:
            assert await process.exit_status() == 1
            assert "ready" not in [event["event"] for event in process.events]


async def test_unix_socket(tmp_path: Path) -> None:
    async with started(GUARD_ADDRESS=f"unix:{tmp_path}/guard.sock") as process:
        client = await ready(process)
        assert (await client.moderation.Classify(question("bread"))).verdict
        await client.channel.close()


async def test_memory_stays_flat_under_bombs_and_crowds() -> None:
    """Failure tests 1 and 9: gzip bombs are refused before they are unpacked, giant messages and metadata before they
    are read, and a crowd of refused calls leaves nothing.
    """
    async with started(FAKE_STEP_SECONDS="0.001") as process:
        client = await ready(process)
        for _ in range(50):
            await client.moderation.Classify(question("warm"))
        before = resident_mib(process.process.pid)
        bomb = question("x" * (32 << 20))
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.moderation.Classify(bomb, compression=grpc.Compression.Gzip)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.moderation.Classify(bomb)  # the same without compression
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for _ in range(5):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.moderation.Classify(question("x"), metadata=[("x-big", "y" * 20_000)])
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        peak = resident_mib(process.process.pid, "VmHWM")
        for _ in range(10):
            calls = [client.moderation.Classify(question("y" * 50)) for _ in range(200)]
            await asyncio.gather(*calls, return_exceptions=True)
        assert peak - before < 32
        assert resident_mib(process.process.pid) - before < 32
        assert (await client.moderation.Classify(question("bread"))).verdict
        await client.channel.close()
