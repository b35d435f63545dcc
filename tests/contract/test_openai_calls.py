"""Calls over HTTP are calls: callers, quotas, one gate with gRPC, clients that leave or stall, deadlines, the end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest

from guard.v1.generation_pb2 import GenerateRequest
from server.auth import keys

from .facade import JSON, facade, get, post
from .fakes import UNSAFE_MARK, FakeModels
from .running import message, refused, until

SLOW_S = 0.02


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
