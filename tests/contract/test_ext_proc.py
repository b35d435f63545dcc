"""The moderation sidecar as Envoy sees it: ExternalProcessor.Process on a real server. With a real Envoy: tests/e2e."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.errors import PermissionDeniedError
from server.auth import keys, permissions
from server.auth.caller import Caller
from server.ext_proc.v3 import external_processor_pb2 as ext_proc
from server.ext_proc.v3 import external_processor_pb2_grpc

from .fakes import UNSAFE_MARK, FakeModels
from .running import Running, question, refused, running

ProcessingMode = ext_proc.ProcessingMode
METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


@pytest.fixture
async def sidecar(models: FakeModels) -> AsyncIterator[Running]:
    """A server that Envoy may call."""
    async with running(models, ext_proc=True, instruct=None) as started:
        yield started


def process(server: Running, **metadata: str) -> Any:
    """Begin an exchange, with Envoy's metadata."""
    stub = external_processor_pb2_grpc.ExternalProcessorStub(server.channel)
    return stub.Process(metadata=[(f"guardlet-{key}", value) for key, value in metadata.items()], timeout=10)


def request_headers(body_mode: Any = ProcessingMode.FULL_DUPLEX_STREAMED, **headers: str) -> Any:
    """The first message of an exchange."""
    given = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"} | headers
    values = [ext_proc.HeaderValue(key=key, raw_value=value.encode()) for key, value in given.items()]
    return ext_proc.ProcessingRequest(
        request_headers=ext_proc.HttpHeaders(headers=ext_proc.HeaderMap(headers=values)),
        protocol_config=ext_proc.ProtocolConfiguration(
            request_body_mode=ProcessingMode.BUFFERED, response_body_mode=body_mode
        ),
    )


def request_body(text: str) -> Any:
    """The second one."""
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    return ext_proc.ProcessingRequest(request_body=ext_proc.HttpBody(body=body, end_of_stream=True))


async def test_an_exchange_is_judged_and_forged_headers_are_removed(sidecar: Running) -> None:
    call = process(sidecar)
    await call.write(request_headers(**{"X-Guardlet-Verdict": "safe", "x-request-id": "r-1"}))
    mutation = (await call.read()).request_headers.response.header_mutation
    assert list(mutation.remove_headers) == ["x-guardlet-verdict"]
    await call.write(request_body(f"How to {UNSAFE_MARK}?"))
    answer = (await call.read()).immediate_response
    assert answer.status.code == 403
    assert json.loads(answer.body)["error"]["request_id"] == "r-1"
    await call.write(request_body("Hello"))  # whatever comes after is not answered
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_other_processing_modes_are_refused(sidecar: Running) -> None:
    call = process(sidecar)
    await call.write(request_headers(ProcessingMode.STREAMED))
    found = await refused(call.read())
    assert (found.code, list(found.fields)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["processing_mode.response_body_mode"],
    )


async def test_a_route_that_is_described_wrongly_is_refused(sidecar: Running) -> None:
    found = await refused(process(sidecar, policy="missing").read())
    assert (found.code, list(found.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["policy_name"])
    assert list((await refused(process(sidecar, action="maybe").read())).fields) == ["metadata.guardlet-action"]


async def test_messages_of_another_mode_end_the_call_with_an_error(sidecar: Running) -> None:
    call = process(sidecar)
    await call.write(request_headers())
    await call.read()
    await call.write(ext_proc.ProcessingRequest(request_trailers=ext_proc.HttpTrailers()))
    assert (await refused(call.read())).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_exchanges_have_room_of_their_own(models: FakeModels) -> None:
    async with running(models, ext_proc=True, instruct=None, max_requests=1) as server:
        call = process(server)
        await call.write(request_headers())
        await call.read()
        assert (await refused(process(server).read())).info.reason == "QUEUE_FULL"
        assert (await server.moderation.Classify(question("Hello"))).unsafe_score < 0.5


async def test_a_stop_ends_an_exchange_with_an_error_not_well(sidecar: Running) -> None:
    """Failure test 25. Upon a good end Envoy would let the rest pass unjudged."""
    call = process(sidecar)
    await call.write(request_headers())
    await call.read()
    assert sidecar.app._server is not None
    await sidecar.app._server.stop(grace=None)
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    assert await call.code() is not grpc.StatusCode.OK


async def test_verdicts_are_audited_and_logged_by_the_request_id_of_envoy(models: FakeModels, tmp_path: Path) -> None:
    key, file = tmp_path / "key", tmp_path / "audit"
    key.write_text("k" * 32)
    key.chmod(0o600)
    async with running(models, ext_proc=True, instruct=None, audit_file=file, audit_key_file=key) as server:
        call = process(server)
        await call.write(request_headers(**{"x-request-id": "r-2"}))
        await call.read()
        await call.write(request_body(f"How to {UNSAFE_MARK}?"))
        await call.read()
        call.cancel()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (verdict,) = [line for line in lines if line.get("verdict")]
    assert (verdict["verdict"], verdict["request_id"], verdict["method"]) == ("unsafe", "r-2", METHOD)
    assert UNSAFE_MARK not in file.read_text()


def test_callers_of_the_moderation_service_may_be_envoys() -> None:
    permissions.check(Caller("edge", services=frozenset({"moderation"})), METHOD)
    with pytest.raises(PermissionDeniedError):
        permissions.check(Caller("writer", services=frozenset({"generation"})), METHOD)


async def test_envoy_is_a_caller_as_others_are(models: FakeModels, tmp_path: Path) -> None:
    key, other = keys.new_key(), keys.new_key()
    entries = {
        "edge": {"keys": [keys.key_hash(key)], "services": ["moderation"], "policy": "lenient"},
        "writer": {"keys": [keys.key_hash(other)], "services": ["generation"]},
    }
    callers, policies = tmp_path / "callers.yaml", tmp_path / "policies.yaml"
    callers.write_text(json.dumps({"callers": entries}))
    policies.write_text(json.dumps({"policies": {"lenient": {"threshold": 0.9999}}}))
    async with running(models, ext_proc=True, instruct=None, callers=callers, policies=policies) as server:
        stub = external_processor_pb2_grpc.ExternalProcessorStub(server.channel)
        assert (await refused(stub.Process().read())).code is grpc.StatusCode.UNAUTHENTICATED
        denied = stub.Process(metadata=[("authorization", f"Bearer {other}")])
        assert (await refused(denied.read())).code is grpc.StatusCode.PERMISSION_DENIED
        call = stub.Process(metadata=[("authorization", f"Bearer {key}")])
        await call.write(request_headers())
        await call.read()
        await call.write(request_body(f"How to {UNSAFE_MARK}?"))  # of 0.98, which this caller's policy lets pass
        assert (await call.read()).WhichOneof("response") == "request_body"
        call.cancel()


async def test_it_is_off_unless_asked_for(server: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await process(server).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
