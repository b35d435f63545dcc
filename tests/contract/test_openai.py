"""The HTTP facade over a real socket, asked by the real ``openai`` package, with scripted models."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from guard.errors import InvalidInputError
from guard.v1.generation_pb2 import GenerateRequest
from server.auth import keys
from server.openai_http.moderations import CATEGORIES
from server.settings import Settings

from .certificates import Authority
from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import Running, message, question, refused, running, until

MODERATED = {"guardlet": {"moderation": True}}
SLOW_S = 0.02


@dataclass
class Facade:
    """A started server and a client of its HTTP side."""

    server: Running
    client: openai.AsyncOpenAI

    @property
    def engine(self) -> Any:
        """That of the instruct model."""
        return self.server.app.registry.instruct("")[0].model.engine

    async def chat(self, text: str = "hi", **fields: Any) -> Any:
        """A greedy completion of at most eight tokens, unless ``fields`` say otherwise."""
        defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
        asked = [{"role": "user", "content": text}]
        return await self.client.chat.completions.create(
            **{"model": "default", "messages": asked, **defaults, **fields}
        )

    async def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send ``request`` as it is on a connection of its own; returns status, headers and body."""
        host, _, port = (self.server.app.http.address if self.server.app.http else "").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        await writer.drain()
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        writer.close()
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, body


@asynccontextmanager
async def facade(models: FakeModels, *, api_key: str = "unused", **settings: Any) -> AsyncIterator[Facade]:
    """A server with HTTP and ``settings``."""
    async with running(models, http_address="127.0.0.1:0", **settings) as server:
        assert server.app.http is not None
        base = f"http://{server.app.http.address}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=api_key, max_retries=0, timeout=30) as client:
            yield Facade(server, client)


@pytest.fixture
async def http(models: FakeModels) -> AsyncIterator[Facade]:
    async with facade(models) as started:
        yield started


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str) -> bytes:
    """A request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


JSON = "Content-Type: application/json"


# ---------------------------------------------------------------- moderations
async def test_an_unsafe_text_is_flagged_as_over_grpc(http: Facade) -> None:
    text = f"how to {UNSAFE_MARK}"
    answer = await http.client.moderations.create(input=text)
    over_grpc = await http.server.moderation.Classify(question(text))
    (result,) = answer.results
    own = result.model_dump()["guardlet"]
    assert result.flagged and result.categories.illicit
    assert not result.categories.hate
    assert answer.model == over_grpc.model == own["model"]
    assert own["verdict"] == "VERDICT_UNSAFE" and own["action"] == "ACTION_BLOCK"
    assert own["unsafe_score"] == pytest.approx(over_grpc.unsafe_score)
    assert result.category_scores.illicit == pytest.approx(over_grpc.categories[0].score)
    assert {found["code"] for found in own["categories"]} == {"S1", "S2", "S10"}


async def test_a_list_has_a_result_each_with_all_thirteen_categories(http: Facade) -> None:
    answer = await http.client.moderations.create(
        input=["fine", UNSAFE_MARK, "fine too"], model="omni-moderation-latest"
    )
    assert [result.flagged for result in answer.results] == [False, True, False]
    _, _, body = await http.raw(post("/v1/moderations", b'{"input": "fine"}', JSON))
    result = json.loads(body)["results"][0]
    for part in ("categories", "category_scores", "category_applied_input_types"):
        assert tuple(result[part]) == CATEGORIES
    assert result["category_applied_input_types"]["illicit"] == ["text"]
    assert result["category_applied_input_types"]["violence/graphic"] == []


async def test_parts_are_one_text_and_images_are_refused_by_name(http: Facade) -> None:
    parts: Any = [{"type": "text", "text": "fine"}, {"type": "text", "text": UNSAFE_MARK}]
    assert [found.flagged for found in (await http.client.moderations.create(input=parts)).results] == [True]
    image: Any = [*parts, {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        await http.client.moderations.create(input=image)
    assert caught.value.param == "input[2].type"
    assert "image_url" in str(caught.value)


async def test_a_response_is_judged_in_its_context(http: Facade) -> None:
    context = [{"role": "ROLE_USER", "content": "hi"}]
    body = {"guardlet": {"target": "TARGET_RESPONSE", "messages": context, "policy": {"threshold": 0.9999}}}
    answer = await http.client.moderations.create(input=UNSAFE_MARK, extra_body=body)
    own = answer.results[0].model_dump()["guardlet"]
    assert own["target"] == "TARGET_RESPONSE"
    assert own["verdict"] == "VERDICT_SAFE", "the threshold of the request counts"


async def test_one_text_that_cannot_be_judged_fails_all(http: Facade) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await http.client.moderations.create(input=["fine", BROKEN_MARK])
    assert caught.value.status_code == 500
    with pytest.raises(openai.BadRequestError) as bad:
        await http.client.moderations.create(input=["fine", " "])
    assert bad.value.param == "input[1]"


# ---------------------------------------------------------------- chat completions
async def test_a_completion_is_that_of_grpc(http: Facade) -> None:
    answer = await http.chat(n=1, stop=["g"], logprobs=True, top_logprobs=2, seed=7, logit_bias={"300": -100})
    (choice,) = answer.choices
    assert choice.message.content == "bcdef"
    assert choice.finish_reason == "stop"
    assert answer.usage.completion_tokens >= 5 and answer.usage.total_tokens > answer.usage.completion_tokens
    assert [token.token for token in choice.logprobs.content][:2] == ["b", "c"]
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert choice.logprobs.content[0].bytes == [ord("b")]


async def test_a_stream_says_the_same_as_the_whole(http: Facade) -> None:
    whole = await http.chat()
    chunks = [chunk async for chunk in await http.chat(stream=True, stream_options={"include_usage": True})]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in chunks[-2].choices] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_several_choices_are_streamed_with_their_index(http: Facade) -> None:
    ends = {}
    async for chunk in await http.chat(stream=True, n=2, temperature=1.0, seed=1):
        for choice in chunk.choices:
            ends[choice.index] = choice.finish_reason
    assert ends == {0: "length", 1: "length"}


async def test_an_unsafe_prompt_is_blocked(http: Facade) -> None:
    answer = await http.chat(UNSAFE_MARK, extra_body=MODERATED)
    assert answer.choices[0].finish_reason == "content_filter"
    assert answer.choices[0].message.content == ""
    assert answer.guardlet["moderation"]["input"]["verdict"] == "VERDICT_UNSAFE"
    assert (await http.chat(UNSAFE_MARK)).choices[0].finish_reason == "length", "nobody asked for moderation"


async def test_an_unsafe_answer_is_cut_before_its_unsafe_part(models: FakeModels) -> None:
    models.says = [f"this is all right. and now {UNSAFE_MARK} it"]
    async with facade(models) as http:
        stream = await http.chat(stream=True, max_tokens=60, extra_body=MODERATED)
        chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert UNSAFE_MARK not in text and "steal" not in text
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert chunks[-1].model_dump()["guardlet"]["moderation"]["output"]["action"] == "ACTION_BLOCK"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "much"}, "top_p"),
        ({"seed": 2**70}, "seed"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"max_completion_tokens": 3}, "max_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tool_choice": "often"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"guardlet": {"moderation": {"policy_name": "no such"}}}, "guardlet.moderation.policy_name"),
        ({"guardlet": {"top_k": "x"}}, "guardlet.top_k"),
        ({"guardlet": {"prompt": "x"}}, "guardlet.prompt"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "hi", "name": "me"}]}, "messages[0].name"),
        ({"messages": [{"role": "boss", "content": "hi"}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(http: Facade, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await http.chat(extra_body=fields)
    assert caught.value.param == param
    assert caught.value.request_id


async def test_labels_and_nulls_change_nothing(http: Facade) -> None:
    plain = await http.chat()
    labelled = await http.chat(user="someone", extra_body={"store": False, "tools": [], "stop": None, "metadata": {}})
    assert labelled.choices[0].message.content == plain.choices[0].message.content


# ---------------------------------------------------------------- models, health, page
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


# ---------------------------------------------------------------- what HTTP alone can get wrong
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


# ---------------------------------------------------------------- callers, limits, leaving
def callers_file(directory: Path, **callers: tuple[str, str]) -> Path:
    """Writes the file: name to key and further fields as YAML."""
    lines = [
        f'  {name}:\n    keys: ["{keys.key_hash(key)}"]\n    {more or "admin: false"}'
        for name, (key, more) in callers.items()
    ]
    path = directory / "callers.yaml"
    path.write_text("callers:\n" + "\n".join(lines) + "\n")
    return path


async def test_keys_permissions_and_quotas_are_those_of_grpc(models: FakeModels, tmp_path: Path) -> None:
    judge, few = keys.new_key(), keys.new_key()
    path = callers_file(tmp_path, judge=(judge, "services: [moderation]"), few=(few, "quota: {requests_per_minute: 1}"))
    async with facade(models, callers=path) as http:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await http.chat()
        assert unknown.value.code == "invalid_api_key"
        assert (await http.raw(get("/stats")))[0] == 401
        assert (await http.raw(get("/healthz")))[0] == 200
        known = http.client.with_options(api_key=judge)
        assert (await known.moderations.create(input=UNSAFE_MARK)).results[0].flagged
        with pytest.raises(openai.PermissionDeniedError):
            await known.chat.completions.create(model="default", messages=[{"role": "user", "content": "hi"}])
        limited = http.client.with_options(api_key=few)
        await limited.moderations.create(input="hi")
        with pytest.raises(openai.RateLimitError) as caught:
            await limited.moderations.create(input="hi")
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) > 0


async def test_a_caller_with_a_policy_is_moderated_in_any_case(models: FakeModels, tmp_path: Path) -> None:
    (tmp_path / "policies.yaml").write_text("policies: {strict: {threshold: 0.4}}\n")
    key = keys.new_key()
    path = callers_file(tmp_path, watched=(key, "policy: strict"))
    async with facade(models, api_key=key, callers=path, policies=tmp_path / "policies.yaml") as http:
        answer = await http.chat(UNSAFE_MARK)
        assert answer.choices[0].finish_reason == "content_filter"
        assert answer.guardlet["moderation"]["input"]["policy_name"] == "strict"


async def test_a_full_server_refuses_with_a_time_to_come_back(models: FakeModels) -> None:
    models.step_seconds = SLOW_S
    async with facade(models, max_requests=1) as http:
        first = asyncio.create_task(http.chat(max_tokens=200))
        await until(lambda: http.server.app.gates["guard.v1.GenerationService"].requests == 1)
        with pytest.raises(openai.RateLimitError):
            await http.chat()
        first.cancel()
        await asyncio.wait({first})
        await until(lambda: http.server.app.gates["guard.v1.GenerationService"].requests == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_its_compute(models: FakeModels, stream: bool) -> None:
    models.step_seconds = SLOW_S
    async with facade(models) as http:
        asked = asyncio.create_task(http.chat(max_tokens=2000, stream=stream))
        await until(lambda: http.engine.kv_bytes_in_use > 0)
        if stream:
            answer = await asked
            await answer.close()
        else:
            asked.cancel()
            await asyncio.wait({asked})
        await until(lambda: http.engine.kv_bytes_in_use == 0)
        steps = models.runners["instruct"].steps
        await asyncio.sleep(SLOW_S * 5)
        assert models.runners["instruct"].steps <= steps + 1


async def test_a_reader_that_stalls_is_given_up(models: FakeModels) -> None:
    async with facade(models, stream_idle_s=0.3, max_tokens=2**20, default_max_tokens=8) as http:
        assert http.server.app.http is not None
        host, _, port = http.server.app.http.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = {"model": "default", "stream": True, "max_tokens": 4000, "messages": [{"role": "user", "content": "hi"}]}
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post("/v1/chat/completions", json.dumps(body).encode(), JSON))
        await until(lambda: http.engine.kv_bytes_in_use == 0 and models.runners["instruct"].steps > 10, 30)
        await until(lambda: http.server.app.gates["guard.v1.GenerationService"].requests == 0)
        writer.close()


async def test_a_deadline_ends_a_stream_with_an_error(models: FakeModels) -> None:
    models.step_seconds = SLOW_S
    async with facade(models, deadline_part=0) as http:
        stream = await http.chat(stream=True, max_tokens=2000, extra_headers={"guardlet-timeout": "0.4"})
        with pytest.raises(openai.APIError, match="no answer within"):
            async for _ in stream:
                pass


async def test_requests_in_flight_are_finished_at_the_end(models: FakeModels) -> None:
    models.step_seconds = SLOW_S
    async with facade(models) as http:
        asked = asyncio.create_task(http.chat(max_tokens=20))
        await until(lambda: http.engine.kv_bytes_in_use > 0)
        assert http.server.app.http is not None
        await http.server.app.http.stop(10.0)
        assert (await asked).usage.completion_tokens == 20
        with pytest.raises(openai.APIConnectionError):
            await http.chat()


async def test_whoever_is_in_a_hurry_cuts_requests_off(models: FakeModels) -> None:
    models.step_seconds = SLOW_S
    async with facade(models) as http:
        asked = asyncio.create_task(http.chat(max_tokens=4000))
        await until(lambda: http.engine.kv_bytes_in_use > 0)
        assert http.server.app.http is not None
        await http.server.app.http.stop(0.0)
        with pytest.raises(openai.APIConnectionError):
            await asked
        await until(lambda: http.engine.kv_bytes_in_use == 0)


async def test_both_sides_share_one_gate(models: FakeModels) -> None:
    models.step_seconds = SLOW_S
    async with facade(models, max_requests=1) as http:
        asked = asyncio.create_task(http.chat(max_tokens=30))
        await until(lambda: http.server.app.gates["guard.v1.GenerationService"].requests == 1)
        refusal = await refused(http.server.generation.Generate(GenerateRequest(messages=[message("hi")])))
        assert refusal.info.reason == "QUEUE_FULL"
        await asked


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
