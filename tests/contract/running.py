"""A real server on a loopback port and a real channel to it, and readers of what it says when it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guard.v1 import generation_pb2_grpc, model_pb2_grpc, moderation_pb2, moderation_pb2_grpc
from server.app import App
from server.drain import StopRequest
from server.registry import Loader
from server.settings import Settings
from server.telemetry.tracing import Tracing

USER = moderation_pb2.ROLE_USER
ASSISTANT = moderation_pb2.ROLE_ASSISTANT
SYSTEM = moderation_pb2.ROLE_SYSTEM


@dataclass
class Running:
    """A started App with stubs on one channel."""

    app: App
    channel: Any

    def __post_init__(self) -> None:
        self.moderation: Any = moderation_pb2_grpc.ModerationServiceStub(self.channel)
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def serving(self, service: str = "") -> bool:
        """What health says."""
        response = await self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def running(
    loader: Loader, *, load: bool = True, tracing: Tracing | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """A server with both models and no verdict cache, unless ``settings`` say otherwise."""
    defaults: dict[str, Any] = {
        "guard": Path("guard"),
        "instruct": Path("instruct"),
        "address": "127.0.0.1:0",
        "drain_delay_s": 0.0,
        "grace_s": 5.0,
        "cache_entries": 0,  # the same text twice is twice work for the model
    }
    app = App(Settings(**(defaults | settings)), loader, tracing=tracing)
    await app.start()
    try:
        if load:
            await app.load()
        async with grpc.aio.insecure_channel(app.address, options=[("grpc.max_send_message_length", -1)]) as channel:
            yield Running(app, channel)
    finally:
        stop = StopRequest()
        stop.ask(patient=False)
        await app.stop(stop)


@dataclass
class Refusal:
    """What a failed call says."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    fields: dict[str, str]
    retry_after_s: float | None
    pushback_ms: int | None
    everything: str


async def refused(call: Awaitable[Any]) -> Refusal:
    """Await ``call``, which must fail with details that this project's error model promises."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Read the details of a failed call."""
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        has_retry |= detail.Unpack(retry)
        assert detail.Unpack(info) or detail.Unpack(bad) or detail.Is(retry.DESCRIPTOR)
    assert info.domain == "guardlet"
    assert info.metadata["request_id"]
    pushback = trailers.get("grpc-retry-pushback-ms")
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        info=info,
        fields={violation.field: violation.description for violation in bad.field_violations},
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
        pushback_ms=None if pushback is None else int(pushback),
        everything=f"{error} {trailers} {status}",
    )


def message(content: str, role: moderation_pb2.Role = USER) -> moderation_pb2.Message:
    """One message."""
    return moderation_pb2.Message(role=role, content=content)


def question(*contents: str, **fields: Any) -> moderation_pb2.ClassifyRequest:
    """A ClassifyRequest whose messages alternate, a user's first."""
    messages = [message(content, (USER, ASSISTANT)[index % 2]) for index, content in enumerate(contents)]
    return moderation_pb2.ClassifyRequest(messages=messages, **fields)


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    """Wait for ``condition()`` to become true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
