"""Choosing a label."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import Label, TagRequest
from guard.v1.moderation_pb2 import Message, ToolCall

from .fakes import FakeModels
from .running import ASSISTANT, SYSTEM, Running, message, refused, running, until

LABELS = [Label(name="news"), Label(name="spam", description="Advertising.")]


def question(**fields: Any) -> TagRequest:
    defaults: dict[str, Any] = {"text": "Buy now!", "labels": LABELS}
    return TagRequest(**(defaults | fields))


async def test_every_label_has_a_probability_and_the_most_likely_is_chosen(server: Running) -> None:
    for uncalibrated in (False, True):
        answer = await server.generation.Tag(question(request_id="t1", uncalibrated=uncalibrated))
        assert (answer.request_id, answer.model) == ("t1", "tiny-instruct")
        assert {score.name for score in answer.scores} == {"news", "spam"}
        likely, other = (score.probability for score in answer.scores)
        assert likely >= other > 0
        assert likely + other == pytest.approx(1)
        assert answer.label == answer.scores[0].name
        assert answer.usage.prompt_tokens > 30
        assert answer.usage.completion_tokens == 0
        assert answer.timings.total.ToNanoseconds() > 0


async def test_a_conversation_instead_of_a_text(server: Running) -> None:
    alone = await server.generation.Tag(question(text="", messages=[message("Buy now!")]))
    assert alone.usage.prompt_tokens == (await server.generation.Tag(question())).usage.prompt_tokens
    messages = [message("Hello"), message("Hi, what is it?", ASSISTANT), message("Buy now!")]
    whole = await server.generation.Tag(question(text="", messages=messages))
    assert whole.usage.prompt_tokens > alone.usage.prompt_tokens + 20


async def test_the_labels_are_read_once_for_many_texts(models: FakeModels) -> None:
    async with running(models) as server:
        runner = models.runners["instruct"]
        computed = []
        for text in ("Buy now!", "Rain tomorrow.", "Buy now!"):
            before = runner.tokens
            assert (await server.generation.Tag(question(text=text))).scores
            computed.append(runner.tokens - before)
        assert max(computed[1:]) * 3 < computed[0]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": " "}, "text"),
        ({"messages": [message("x")]}, "text"),
        ({"text": "", "messages": [message(" ")]}, "messages[0].content"),
        ({"text": "", "messages": [message("x", SYSTEM)]}, "messages[0].role"),
        ({"text": "", "messages": [Message(content="x")]}, "messages[0].role"),
        ({"text": "x" * 5000}, "text"),
        ({"labels": []}, "labels"),
        ({"labels": LABELS[:1]}, "labels"),
        ({"labels": [Label(name=f"n{index}") for index in range(65)]}, "labels"),
        ({"labels": [*LABELS, Label(name="news")]}, "labels[2].name"),
        ({"labels": [*LABELS, Label()]}, "labels[2].name"),
        ({"labels": [*LABELS, Label(name="x" * 65)]}, "labels[2].name"),
        ({"labels": [*LABELS, Label(name="a\nb")]}, "labels[2].name"),
        ({"labels": [*LABELS, Label(name="c", description="x" * 513)]}, "labels[2].description"),
        ({"instruction": "x" * 2001}, "instruction"),
        ({"request_id": "a b"}, "request_id"),
    ],
)
async def test_bad_input_is_refused_by_field(server: Running, fields: dict[str, Any], field: str) -> None:
    answer = await refused(server.generation.Tag(question(**fields)))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(answer.fields) == [field]


async def test_calls_of_tools_are_refused_by_name(server: Running) -> None:
    called = Message(role=ASSISTANT, content="x", tool_calls=[ToolCall(id="c", name="f")])
    answer = await refused(server.generation.Tag(question(text="", messages=[called])))
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    assert list(answer.fields) == ["messages[0].tool_calls"]


async def test_no_instruct_model(models: FakeModels) -> None:
    async with running(models, instruct=None) as server:
        answer = await refused(server.generation.Tag(question()))
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
        assert answer.info.reason == "MODEL_NOT_LOADED"


async def test_cancelling_frees_the_engine(models: FakeModels) -> None:
    models.step_seconds = 0.2
    async with running(models) as server:
        _, generator = server.app.registry.instruct()
        call = server.generation.Tag(question())
        await until(lambda: generator.engine.jobs == 1)
        call.cancel()
        await until(lambda: generator.engine.jobs == 0)
        assert generator.engine.kv_bytes_in_use == 0
