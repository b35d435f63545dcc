"""The server as a process: how it starts, how it stops, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guard.v1 import generation_pb2_grpc, moderation_pb2_grpc
from guard.v1.generation_pb2 import FINISH_REASON_LENGTH, GenerateRequest

from .running import message, question

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A started server process; ``events`` are its log lines so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if line.startswith(b"{"):
                self.events.append(json.loads(line))

    async def event(self, name: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while not (found := [event for event in self.events if event["event"] == name]):
                assert self.process.returncode is None, self.events
                await asyncio.sleep(0.01)
        return found[0]

    async def exit_status(self) -> int:
        status = await asyncio.wait_for(self.process.wait(), 30)
        await self.reading
        return status


@asynccontextmanager
async def started(**variables: str) -> AsyncIterator[Process]:
    """A server process with both scripted models and ``variables``."""
    defaults = {"GUARD_GUARD": "guard", "GUARD_INSTRUCT": "instruct", "GUARD_ADDRESS": "127.0.0.1:0"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GUARD_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.serve_fakes",
        cwd=ROOT,
        env=environment | defaults | variables,
        stderr=asyncio.subprocess.PIPE,
    )
    this = Process(process)
    try:
        yield this
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await this.reading


class Client:
    """Stubs on a channel of their own."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self.moderation: Any = moderation_pb2_grpc.ModerationServiceStub(self.channel)
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def serving(self) -> bool:
        response = await self.health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def long(tokens: int) -> GenerateRequest:
    return GenerateRequest(messages=[message("x")], max_tokens=tokens, temperature=0.0)


async def ready(process: Process) -> Client:
    return Client((await process.event("ready"))["address"])


async def test_sigterm_drains() -> None:
    """NOT_SERVING at once, new calls are served during the delay, those in flight finish, the exit status is 0."""
    async with started(GUARD_DRAIN_DELAY_S="0.5", FAKE_STEP_SECONDS="0.02") as process:
        client = await ready(process)
        assert await client.serving()
        in_flight = asyncio.ensure_future(client.generation.Generate(long(60)))
        await asyncio.sleep(0.2)
        process.process.send_signal(signal.SIGTERM)
        await process.event("draining")
        assert not await client.serving()
        assert (await client.moderation.Classify(question("late"))).verdict
        answer = await in_flight
        assert answer.finish_reason == FINISH_REASON_LENGTH
        assert answer.usage.completion_tokens == 60
        assert await process.exit_status() == 0
        assert process.events[-1]["event"] == "stopped"
        await client.channel.close()


async def test_after_the_delay_new_calls_are_refused_while_old_ones_finish() -> None:
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


async def test_an_engine_that_dies_ends_the_process_for_its_supervisor() -> None:
    async with started(FAKE_DIES="0.5") as process:
        assert await process.exit_status() == 1
        (died,) = [event for event in process.events if event["event"] == "engine_died"]
        assert died["model"] == "tiny-guard"


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
    """Oversize and gzip bombs are refused before they are unpacked; a crowd of refused calls leaves nothing."""
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
        peak = resident_mib(process.process.pid, "VmHWM")
        for _ in range(10):
            calls = [client.moderation.Classify(question("y" * 50)) for _ in range(200)]
            await asyncio.gather(*calls, return_exceptions=True)
        assert peak - before < 32
        assert resident_mib(process.process.pid) - before < 32
        assert (await client.moderation.Classify(question("bread"))).verdict
        await client.channel.close()


def resident_mib(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process in MiB: now, or at its highest."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024
