"""Nothing of a request is parsed before it is known that the call may come in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.v1.moderation_pb2 import StreamClassifyRequest
from server.auth import keys

from .fakes import FakeModels
from .running import Running, question, refusal, running

KEYS = {name: keys.new_key() for name in ("free", "limited", "reader")}
CALLERS = f"""
callers:
  free: {{keys: ["{keys.key_hash(KEYS["free"])}"]}}
  limited: {{keys: ["{keys.key_hash(KEYS["limited"])}"], quota: {{requests_per_minute: 1}}}}
  reader: {{keys: ["{keys.key_hash(KEYS["reader"])}"], services: [models]}}
"""
CLASSIFY = "/guard.v1.ModerationService/Classify"
STREAM = "/guard.v1.ModerationService/StreamClassify"
GENERATE = "/guard.v1.GenerationService/StreamGenerate"
MALFORMED = b"\x0b" * 1000  # groups inside groups
HUGE = b"\x0b" * (3 << 20)


@pytest.fixture
async def server(models: FakeModels, tmp_path: Path) -> AsyncIterator[Running]:
    callers = tmp_path / "callers.yaml"
    callers.write_text(CALLERS)
    async with running(models, callers=callers) as started:
        yield started


async def answer(server: Running, method: str, data: bytes, key: str | None) -> Any:
    """The refusal of a call with these bytes."""
    metadata = None if key is None else (("x-api-key", key),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if method == STREAM:
            async for _ in server.channel.stream_stream(method)(iter([data]), metadata=metadata, timeout=10):
                pass
        elif method == GENERATE:
            async for _ in server.channel.unary_stream(method)(data, metadata=metadata, timeout=10):
                pass
        else:
            await server.channel.unary_unary(method)(data, metadata=metadata, timeout=10)
    return refusal(caught.value)


@pytest.mark.parametrize("data", [MALFORMED, HUGE], ids=["malformed", "huge"])
@pytest.mark.parametrize("method", [CLASSIFY, STREAM, GENERATE])
async def test_bytes_of_nobody_known_are_not_parsed(server: Running, method: str, data: bytes) -> None:
    assert (await answer(server, method, data, None)).code is grpc.StatusCode.UNAUTHENTICATED
    assert (await answer(server, method, data, keys.new_key())).code is grpc.StatusCode.UNAUTHENTICATED
    # Of one that may come in they are, so it is not for another reason that they were not refused as unreadable.
    found = await answer(server, method, data, KEYS["free"])
    assert (found.code, list(found.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["request"])


async def test_nor_of_whoever_may_not_call_or_has_called_enough(server: Running) -> None:
    assert (await answer(server, CLASSIFY, MALFORMED, KEYS["reader"])).code is grpc.StatusCode.PERMISSION_DENIED
    assert (await answer(server, CLASSIFY, MALFORMED, KEYS["limited"])).code is grpc.StatusCode.INVALID_ARGUMENT
    found = await answer(server, CLASSIFY, MALFORMED, KEYS["limited"])  # the unreadable one was one of its requests
    assert (found.code, found.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")


async def test_nor_when_there_is_no_room(models: FakeModels) -> None:
    async with running(models, max_message_mib=4.0, max_queued_mib=4.0, max_requests=1) as server:
        holding = server.moderation.StreamClassify()
        await holding.write(StreamClassifyRequest(start={"target": "TARGET_PROMPT"}))
        await holding.initial_metadata()
        found = await answer(server, CLASSIFY, MALFORMED, None)
        assert (found.code, found.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        holding.cancel()


async def test_the_parts_of_a_stream_are_counted_before_they_are_parsed(models: FakeModels) -> None:
    async with running(models, max_message_mib=1.0, max_queued_mib=1.0) as server:
        call = server.channel.stream_stream(STREAM)(timeout=10)
        await call.write(StreamClassifyRequest(start={"target": "TARGET_PROMPT"}).SerializeToString())
        await call.initial_metadata()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.write(b"\x0b" * ((1 << 20) - 1))  # with the first message, more than there is room for
            await call.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate = server.app.gates["guard.v1.ModerationService"]
        assert (gate.requests, gate.bytes) == (0, 0)


async def test_a_request_keeps_its_id(server: Running) -> None:
    metadata = (("x-api-key", KEYS["free"]),)
    assert (
        await server.moderation.Classify(question("bread", request_id="r-1"), metadata=metadata)
    ).request_id == "r-1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.moderation.Classify(question(" ", request_id="r-2"), metadata=metadata)
    assert refusal(caught.value).info.metadata["request_id"] == "r-2"
