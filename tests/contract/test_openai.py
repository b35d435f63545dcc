"""OpenAI's paths over a real socket, asked by the real ``openai`` package, with scripted models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from server.openai_http.moderations import CATEGORIES

from .facade import JSON, Facade, facade, post
from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import question

MODERATED = {"guardlet": {"moderation": True}}


@pytest.fixture
async def http(models: FakeModels) -> AsyncIterator[Facade]:
    async with facade(models) as started:
        yield started


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
