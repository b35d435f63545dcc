"""Tokens a minute: charged once they are known, also of calls that did not end well; who is in debt waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import GenerateRequest, Label, ModerationOptions, StreamGenerateRequest, TagRequest
from guard.v1.moderation_pb2 import BatchClassifyRequest, StreamClassifyRequest
from server.auth import keys

from .fakes import FakeModels
from .running import Refusal, Running, message, question, refusal, refused, running, until
from .scraping import scrape

KEYS = {name: keys.new_key() for name in ("team", "other")}
#: So little that a single call of any kind is more than a minute's worth, and refills by then to one token in a minute.
CALLERS = f"""
callers:
  team: {{keys: ["{keys.key_hash(KEYS["team"])}"], quota: {{tokens_per_minute: 1}}}}
  other: {{keys: ["{keys.key_hash(KEYS["other"])}"]}}
"""
TEAM, OTHER = ((("x-api-key", KEYS[name]),) for name in ("team", "other"))
BOTH = ModerationOptions(check_input=True, check_output=True)


@pytest.fixture
async def server(models: FakeModels, tmp_path: Path) -> AsyncIterator[Running]:
    callers = tmp_path / "callers.yaml"
    callers.write_text(CALLERS)
    async with running(models, callers=callers, metrics_address="127.0.0.1:0", cache_entries=100) as started:
        yield started


def stream(*texts: str) -> list[StreamClassifyRequest]:
    start = StreamClassifyRequest(start={"target": "TARGET_PROMPT", "check_every_tokens": 8})
    return [start, *(StreamClassifyRequest(text=text) for text in texts)]


async def debt(server: Running) -> Refusal:
    """What the next call of the team is told."""
    answer = await refused(server.moderation.Classify(question("next"), metadata=TEAM))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert answer.message == "this caller has a limit of 1 tokens a minute"
    assert (await server.moderation.Classify(question("next"), metadata=OTHER)).verdict
    return answer


async def test_what_was_computed_is_charged_and_what_was_cached_is_not(server: Running) -> None:
    first = await server.moderation.Classify(question("bread"), metadata=TEAM)
    computed = first.usage.prompt_tokens - first.usage.cached_tokens
    answer = await debt(server)
    # One token was there, so `computed - 1` are missing, and the next one: a minute each.
    assert answer.retry_after_s == pytest.approx(computed * 60, abs=5)
    assert answer.pushback_ms == pytest.approx(computed * 60_000, abs=5000)
    assert (await scrape(server)).value("guard_caller_tokens_total", caller="team") == computed
    before = (await scrape(server)).value("guard_caller_tokens_total", caller="other")
    await server.moderation.Classify(question("next"), metadata=OTHER)  # known since debt()
    assert (await scrape(server)).value("guard_caller_tokens_total", caller="other") == before > 0


@pytest.mark.parametrize("kind", ["generate", "moderated", "stream", "tag", "batch", "stream_classify"])
async def test_every_kind_of_call_is_charged(server: Running, kind: str) -> None:
    usage: Any = None
    asked: dict[str, Any] = {"messages": [message("hi")], "max_tokens": 5}
    if kind == "generate":
        usage = (await server.generation.Generate(GenerateRequest(**asked), metadata=TEAM)).usage
    elif kind == "moderated":
        await server.generation.Generate(GenerateRequest(moderation=BOTH, **asked), metadata=TEAM)
    elif kind == "stream":
        parts = server.generation.StreamGenerate(StreamGenerateRequest(**asked), metadata=TEAM)
        usage = [part async for part in parts][-1].usage
    elif kind == "tag":
        await server.generation.Tag(
            TagRequest(text="Buy now!", labels=[Label(name="news"), Label(name="spam")]), metadata=TEAM
        )
    elif kind == "batch":
        await server.moderation.BatchClassify(
            BatchClassifyRequest(requests=[question("a"), question("b")]), metadata=TEAM
        )
    else:
        async for _ in server.moderation.StreamClassify(iter(stream("a whole loaf")), metadata=TEAM):
            pass
    charged = (await scrape(server)).value("guard_caller_tokens_total", caller="team")
    assert charged > 0
    if usage is not None:  # the last token of a text does not go through the model
        assert charged == usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1
    await debt(server)


async def test_whoever_leaves_pays_for_what_was_computed(server: Running, models: FakeModels) -> None:
    models.runners["instruct"].step_seconds = 0.02
    call = server.generation.StreamGenerate(
        StreamGenerateRequest(messages=[message("hi")], max_tokens=300), metadata=TEAM
    )
    for _ in range(4):
        await call.read()
    call.cancel()
    gate = server.app.gates["guard.v1.GenerationService"]
    await until(lambda: gate.requests == 0)
    assert 0 < (await scrape(server)).value("guard_caller_tokens_total", caller="team") < 300
    await debt(server)


async def test_a_deadline_that_passes_is_paid_for(server: Running, models: FakeModels) -> None:
    models.runners["instruct"].step_seconds = 0.02
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.generation.Generate(
            GenerateRequest(messages=[message("hi")], max_tokens=300), metadata=TEAM, timeout=0.5
        )
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.sleep(0.1)
    await debt(server)


async def test_a_stream_in_debt_is_told_so(server: Running) -> None:
    call = server.moderation.StreamClassify(metadata=TEAM)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        start, text = stream("word " * 20)
        await call.write(start)
        await call.write(text)
        await call.read()  # a check was made
        await call.write(text)
        while await call.read() is not grpc.aio.EOF:
            pass
    answer = refusal(caught.value)
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert answer.retry_after_s is not None
