"""Bytes that are wrong, too many, or too compressed."""

from __future__ import annotations

import grpc
import pytest

from guard.v1 import moderation_pb2

from .fakes import FakeModels
from .running import Running, question, refusal, refused, running

CLASSIFY = "/guard.v1.ModerationService/Classify"
METHODS = (
    CLASSIFY,
    "/guard.v1.ModerationService/BatchClassify",
    "/guard.v1.GenerationService/Generate",
    "/guard.v1.GenerationService/StreamGenerate",
    "/guard.v1.ModelService/ListModels",
    "/guard.v1.ModelService/GetModel",
    "/guard.v1.ModelService/LoadModel",
    "/guard.v1.ModelService/UnloadModel",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
)
TRUNCATED = b"\x0a\x7fxyz"  # field 1, 127 bytes long, of which three are there
INVALID_UTF8 = b"\x0a\x02\xff\xfe"
LONE_SURROGATE = b"\xed\xa0\x80"  # U+D800, as it would be in UTF-8
GROUP_BOMB = b"\x0b" * 100_000  # groups inside groups


async def send(server: Running, method: str, data: bytes) -> bytes:
    """Send ``data`` as the request of ``method``; the first response, as bytes."""
    if method.endswith(("StreamGenerate", "Watch")):
        call = server.channel.unary_stream(method)(data, timeout=5)
        return bytes(await call.read())
    return bytes(await server.channel.unary_unary(method)(data, timeout=5))


@pytest.mark.parametrize("data", [TRUNCATED, INVALID_UTF8, GROUP_BOMB], ids=["truncated", "utf8", "groups"])
@pytest.mark.parametrize("method", METHODS)
async def test_unreadable_requests_are_invalid_and_leak_nothing(server: Running, method: str, data: bytes) -> None:
    """Failure test 10."""
    if data is INVALID_UTF8 and method.endswith("ListModels"):
        data = b"\x12\x02\xff\xfe"  # its field 1 is a number
    if data is INVALID_UTF8 and method.endswith("BatchClassify"):
        data = b"\x12\x04" + INVALID_UTF8
    answer = await refused(send(server, method, data))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.info.reason == "INVALID_INPUT"
    assert list(answer.fields) == ["request"]
    for leak in ("DecodeError", "protobuf", "Exception", "Traceback", "xyz", "utf"):
        assert leak not in answer.everything


@pytest.mark.parametrize(
    "method",
    ["/guard.v1.ModerationService/StreamClassify", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"],
)
async def test_unreadable_requests_in_streams(server: Running, method: str) -> None:
    """Failure test 10."""
    call = server.channel.stream_stream(method)(timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.write(TRUNCATED)
        await call.read()
    answer = refusal(caught.value)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "DecodeError" not in answer.everything


async def test_a_lone_surrogate_is_invalid(server: Running) -> None:
    """Failure test 11: in the content of a message, where it is no UTF-8."""
    data = question("xyz").SerializeToString()
    assert data.count(b"xyz") == 1
    answer = await refused(send(server, CLASSIFY, data.replace(b"xyz", LONE_SURROGATE)))
    assert (answer.code, list(answer.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["request"])


async def test_unknown_fields_are_ignored(server: Running) -> None:
    """Failure test 10."""
    data = question("bread").SerializeToString() + b"\xfa\x7f\x03new"  # field 2047
    answer = moderation_pb2.ClassifyResponse.FromString(await send(server, CLASSIFY, data))
    assert answer.verdict == moderation_pb2.VERDICT_SAFE


async def test_oversize_request(models: FakeModels) -> None:
    """Failure test 9."""
    async with running(models, max_message_mib=0.25) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.moderation.Classify(question("x" * (300 << 10)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "x" * 10 not in str(caught.value)
        assert (await server.moderation.Classify(question("bread"))).verdict


async def test_gzip_bomb(server: Running) -> None:
    """Failure test 9."""
    bomb = question("x" * (32 << 20))
    async with grpc.aio.insecure_channel(server.app.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Running(server.app, channel).moderation.Classify(bomb, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await server.moderation.Classify(question("bread"))).verdict


async def test_huge_metadata(server: Running) -> None:
    """Failure test 9."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.moderation.Classify(question("bread"), metadata=(("x-big", "y" * 20_000),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await server.moderation.Classify(question("bread"))).verdict


async def test_unknown_method(server: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(server, "/guard.v1.ModerationService/NoSuch", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
