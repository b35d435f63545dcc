"""What people have at hand: grpcurl and buf curl list and call the server by reflection, and are told what is wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from .fakes import UNSAFE_MARK
from .running import Running

ROOT = Path(__file__).resolve().parents[2]
SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "guard.v1.GenerationService",
    "guard.v1.ModelService",
    "guard.v1.ModerationService",
}
CLASSIFY = "guard.v1.ModerationService/Classify"


def tool(name: str) -> str:
    """The path of a tool beside this Python or on the PATH; skips the test when there is none."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


async def run(*command: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def request(text: str) -> str:
    return json.dumps({"messages": [{"role": "ROLE_USER", "content": text}]})


async def test_reflection_lists_the_services(server: Running) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await call.read()).list_services_response.service
    assert {service.name for service in listed} == SERVICES
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="guard.v1.GenerateRequest"))
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_grpcurl(server: Running) -> None:
    grpcurl = tool("grpcurl")
    status, out, err = await run(grpcurl, "-plaintext", server.app.address, "list")
    assert (status, set(out.split())) == (0, SERVICES), err
    status, out, err = await run(grpcurl, "-plaintext", server.app.address, "describe", "guard.v1.ClassifyRequest")
    assert "repeated .guard.v1.Message messages = 2;" in out, err

    async def classify(data: str, *options: str) -> tuple[int, str, str]:
        return await run(grpcurl, "-plaintext", *options, "-d", data, server.app.address, CLASSIFY)

    status, out, err = await classify(request(UNSAFE_MARK))
    assert (status, json.loads(out)["verdict"]) == (0, "VERDICT_UNSAFE"), err
    status, out, err = await classify(request(""))
    assert status != 0
    assert "InvalidArgument" in err
    assert "messages[0].content" in err


async def test_grpcurl_streams(server: Running) -> None:
    data = json.dumps({"messages": [{"role": "ROLE_USER", "content": "hi"}], "max_tokens": 5, "temperature": 0})
    method = "guard.v1.GenerationService/StreamGenerate"
    status, out, err = await run(tool("grpcurl"), "-plaintext", "-d", data, server.app.address, method)
    assert status == 0, err
    assert "FINISH_REASON_LENGTH" in out


async def test_buf_curl(server: Running) -> None:
    buf = tool("buf")
    plain = ("curl", "--protocol", "grpc", "--http2-prior-knowledge")
    url = f"http://{server.app.address}"
    status, out, err = await run(buf, *plain, "--list-methods", url)
    assert status == 0, err
    assert CLASSIFY in out
    status, out, err = await run(buf, *plain, "-d", request(UNSAFE_MARK), f"{url}/{CLASSIFY}")
    assert (status, json.loads(out)["verdict"]) == (0, "VERDICT_UNSAFE"), err
    status, out, err = await run(buf, *plain, "-d", request(" "), f"{url}/{CLASSIFY}")
    assert status != 0
    error = json.loads(err)
    assert error["code"] == "invalid_argument"
    assert error["message"].startswith("messages[0].content")
    assert {detail["type"] for detail in error["details"]} == {"google.rpc.ErrorInfo", "google.rpc.BadRequest"}


async def test_the_contract_is_clean_and_the_stubs_are_current() -> None:
    buf = tool("buf")
    for command in (
        (buf, "lint", str(ROOT)),
        (buf, "format", "-d", "--exit-code", str(ROOT)),
        (sys.executable, str(ROOT / "tools" / "stubs.py"), "--check"),
    ):
        status, out, err = await run(*command)
        assert status == 0, out + err


def test_generated_code_needs_no_path_tricks() -> None:
    source = "from guard.v1 import generation_pb2, model_pb2, moderation_pb2; print(generation_pb2.DESCRIPTOR.package)"
    found = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "guard.v1\n"
