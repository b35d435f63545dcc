"""What HTTP alone can get wrong: paths, bodies, headers, the page, TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from guard.errors import InvalidInputError
from server.openai_http.assembly import http_server
from server.openai_http.serving import HttpServer
from server.openai_http.settings import HttpSettings
from server.settings import Settings

from .certificates import Authority
from .facade import JSON, Facade, facade, get, post
from .fakes import FakeModels


@pytest.fixture
async def http(models: FakeModels) -> AsyncIterator[Facade]:
    async with facade(models) as started:
        yield started


async def test_models_are_listed_and_shown(http: Facade) -> None:
    names = [model.id async for model in await http.client.models.list()]
    assert names == ["tiny-guard", "tiny-instruct"]
    assert (await http.client.models.retrieve("tiny-guard")).owned_by == "guardlet"
    with pytest.raises(openai.NotFoundError) as caught:
        await http.client.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await http.chat(model="other")


async def test_health_follows_the_models(models: FakeModels) -> None:
    async with facade(models, load=False) as http:
        assert (await http.raw(get("/healthz")))[0] == 503
        with pytest.raises(openai.NotFoundError):
            await http.chat()
        await http.server.app.load()
        assert (await http.raw(get("/healthz")))[0] == 200


async def test_the_page_loads_nothing_from_elsewhere(http: Facade) -> None:
    status, headers, body = await http.raw(get("/"))
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    for outside in (b"http://", b"https://", b"localStorage", b"sessionStorage", b"cookie"):
        assert outside not in body


async def test_stats_are_those_of_the_window(http: Facade) -> None:
    await http.chat()
    with pytest.raises(openai.BadRequestError):
        await http.chat(n=99)
    status, _, body = await http.raw(get("/stats"))
    stats = json.loads(body)
    assert status == 200
    assert stats["codes"] == {"INVALID_ARGUMENT": 1, "OK": 1}, "HTTP counts as gRPC does, and looking does not count"
    assert stats["success_rate"] == 1.0
    assert stats["tokens_per_second"]["p50"] > 0


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (get("/v1/nothing"), 404, "not_found"),
        (get("/v1/moderations"), 405, "method_not_allowed"),
        (post("/v1/moderations", b"{}"), 415, "content_type"),
        (post("/v1/moderations", b"{}", "Content-Type: text/plain"), 415, "content_type"),
        (post("/v1/moderations", b"{}", JSON, "Content-Encoding: gzip"), 415, "content_type"),
        (post("/v1/moderations", b"not JSON", JSON), 400, "invalid_input"),
        (post("/v1/moderations", b'{"input": "a", "input": "b"}', JSON), 400, "invalid_input"),
        (post("/v1/moderations", b'{"input": "\\ud800"}', JSON), 400, "invalid_input"),
        (post("/v1/moderations", b"[" * 100_000, JSON), 400, "invalid_input"),
        (post("/v1/moderations", b'{"input": "hi"}', JSON, "guardlet-timeout: soon"), 400, "invalid_input"),
        (post("/v1/moderations", b'{"input": "hi"}', JSON, "guardlet-timeout: 0.000001"), 504, "deadline"),
    ],
)
async def test_every_failure_has_openais_form(http: Facade, request_bytes: bytes, status: int, code: str) -> None:
    found, headers, body = await http.raw(request_bytes)
    error = json.loads(body)["error"]
    assert (found, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code", "guardlet"}
    assert headers["content-type"] == "application/json"


async def test_a_body_that_is_too_large_is_refused(models: FakeModels) -> None:
    async with facade(models, max_message_mib=0.01) as http:
        with pytest.raises(openai.APIStatusError) as caught:
            await http.client.moderations.create(input="a" * 20_000)
        assert caught.value.status_code == 413


async def test_a_body_that_does_not_come_is_given_up(models: FakeModels) -> None:
    async with facade(models, stream_idle_s=0.2) as http:
        status, _, _ = await http.raw(post("/v1/moderations", b"", JSON).replace(b"Length: 0", b"Length: 9"))
        assert status == 408


async def test_the_request_id_is_taken_over_and_told(http: Facade) -> None:
    asked = post("/v1/moderations", b'{"input": "hi"}', JSON, "x-request-id: mine-1")
    _, headers, body = await http.raw(asked)
    assert headers["x-request-id"] == "mine-1"
    assert json.loads(body)["results"][0]["guardlet"]["request_id"].startswith("mine-1")


async def test_tls_has_the_files_of_grpc_and_follows_them(models: FakeModels, tmp_path: Path) -> None:
    authority = Authority()
    files: dict[str, Any] = dict(authority.server().write(tmp_path))
    async with facade(models, **files) as http:
        assert http.server.app.http is not None
        port = int(http.server.app.http.address.rpartition(":")[2])
        trusting = ssl.create_default_context(cadata=authority.certificate.decode())

        async def serial() -> str:
            _, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
            found: dict[str, Any] = writer.get_extra_info("peercert")
            writer.close()
            await writer.wait_closed()
            return str(found["serialNumber"])

        first = await serial()
        assert await serial() == first
        authority.server().write(tmp_path)
        second = await serial()
        assert second != first
        (tmp_path / "tls.key").write_bytes(b"no key")
        assert await serial() == second, "files that cannot be used change nothing"


def test_an_open_address_needs_encryption() -> None:
    with pytest.raises(InvalidInputError, match="http_address"):
        Settings(guard=Path("guard"), http_address="0.0.0.0:8080")
    with pytest.raises(InvalidInputError, match="http_address"):
        Settings(guard=Path("guard"), http_address="nowhere")
    assert Settings(guard=Path("guard"), http_address="0.0.0.0:8080", allow_insecure=True).http.host_port()[1] == 8080


def test_without_its_packages_the_server_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "server.openai_http.serving", raising=False)
    nothing: Any = None
    with pytest.raises(InvalidInputError, match=r"http_address: .*guardlet\[http\]"):
        http_server(HttpSettings("127.0.0.1:0"), [], nothing, nothing, nothing, nothing)


async def test_an_address_that_is_taken_is_named(http: Facade) -> None:
    assert http.server.app.http is not None
    second = HttpServer(None, HttpSettings(http.server.app.http.address))
    with pytest.raises(InvalidInputError, match="http_address"):
        await second.start()


async def test_answers_do_not_wait_for_acknowledgements(http: Facade) -> None:
    """Nagle's algorithm would add 40 ms to every answer."""
    await http.client.moderations.create(input="hi")
    assert http.server.app.http is not None
    (connection,) = http.server.app.http._server.server_state.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
