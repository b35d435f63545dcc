"""A server with scripted models in a process of its own, and its log."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guard.v1 import generation_pb2_grpc, model_pb2_grpc, moderation_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A started server process; ``events`` are its log lines so far, ``text`` all that it wrote."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.text = b""
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.text += line
            if line.startswith(b"{"):
                self.events.append(json.loads(line))

    async def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the event ``name``, or the so-many-th of them."""
        async with asyncio.timeout(30):
            while len(found := [event for event in self.events if event["event"] == name]) < count:
                assert self.process.returncode is None, self.events
                await asyncio.sleep(0.01)
        return found[count - 1]

    async def exit_status(self) -> int:
        """Wait for its end."""
        status = await asyncio.wait_for(self.process.wait(), 30)
        await self.reading
        return status


@asynccontextmanager
async def started(
    *, module: str = "serve_fakes", cwd: Path = ROOT, stdout: IO[bytes] | None = None, **variables: str
) -> AsyncIterator[Process]:
    """A server process with both scripted models and ``variables``: the ``module`` of this folder, run in ``cwd``."""
    defaults = {"GUARD_GUARD": "guard", "GUARD_INSTRUCT": "instruct", "GUARD_ADDRESS": "127.0.0.1:0"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GUARD_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{__package__}.{module}"),
        cwd=cwd,
        env=environment | defaults | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=stdout,
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
        self.models: Any = model_pb2_grpc.ModelServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def serving(self, service: str = "") -> bool:
        """What health says."""
        response = await self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def ready(process: Process) -> Client:
    """A client, once the process serves."""
    return Client((await process.event("ready"))["address"])


def resident_mib(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process in MiB: now, or at its highest (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024
