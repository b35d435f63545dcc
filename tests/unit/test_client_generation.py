"""Generation and tagging with the blocking client against a scripted server: what is sent, and what is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from guard.client import (
    Delta,
    GeneratedChoice,
    GenerationOptions,
    GuardClient,
    Label,
    LabelScore,
    ModerationOptions,
    NoAnswerError,
)
from guard.conversation import Message, Role, ToolCall
from guard.errors import InvalidInputError
from guard.generation import (
    Alternative,
    ChoiceFormat,
    JsonFormat,
    OutputFormat,
    RegexFormat,
    TokenLogprob,
    Tool,
    ToolChoice,
    ToolMode,
)
from guard.policy import PolicyChanges
from guard.v1 import generation_pb2, moderation_pb2
from guard.verdict import Verdict
from tests.unit.fake_server import FakeServer, judged, running

STOP = generation_pb2.FINISH_REASON_STOP
LENGTH = generation_pb2.FINISH_REASON_LENGTH
USAGE = moderation_pb2.Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=5, drafted_tokens=3, accepted_tokens=2)
CALL = moderation_pb2.ToolCall(id="c1", name="weather", arguments_json='{"city":"Oslo"}')
TOKEN = generation_pb2.TokenLogprob(
    token_id=7, text="He", logprob=-0.5, top=[generation_pb2.TokenAlternative(token_id=8, text="It", logprob=-1.5)]
)
READ_TOKEN = TokenLogprob(7, "He", -0.5, (Alternative(8, "It", -1.5),))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as fake:
        fake.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(finish_reason=STOP)
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[GuardClient]:
    with GuardClient(server.address, timeout_s=10) as guard_client:
        yield guard_client


def sent(server: FakeServer) -> Any:
    (request,) = server.requests("Generate")
    return request


def test_nothing_is_sent_that_was_not_asked_for(server: FakeServer, client: GuardClient) -> None:
    client.generate("hi")
    assert [field.name for field, _ in sent(server).ListFields()] == ["messages"]


def test_zero_is_sent_as_a_value(server: FakeServer, client: GuardClient) -> None:
    zeros = GenerationOptions(
        temperature=0.0, top_k=0, seed=0, min_p=0.0, presence_penalty=0.0, frequency_penalty=0.0, logprobs=0
    )
    client.generate("hi", zeros)
    request = sent(server)
    names = ["temperature", "top_k", "seed", "min_p", "presence_penalty", "frequency_penalty", "top_logprobs"]
    assert [name for name in names if not request.HasField(name)] == []
    assert request.logprobs


def test_every_option_is_sent(server: FakeServer, client: GuardClient) -> None:
    options = GenerationOptions(
        max_tokens=5,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        logit_bias={3: -100.0},
        logprobs=4,
        choices=2,
        date=date(2026, 11, 30),
        prompt_lookup=False,
        tools=(Tool("weather", "The weather.", {"type": "object"}),),
        tool_choice=ToolChoice(ToolMode.REQUIRED, "weather"),
        moderation=ModerationOptions(
            check_input=False, policy=PolicyChanges(threshold=0.5), policy_name="strict", check_every_tokens=16
        ),
    )
    client.generate("hi", options, model="m", request_id="r")
    expected = generation_pb2.GenerateRequest(
        request_id="r",
        model="m",
        messages=[moderation_pb2.Message(role=moderation_pb2.ROLE_USER, content="hi")],
        max_tokens=5,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        logit_bias={3: -100.0},
        logprobs=True,
        top_logprobs=4,
        choices=2,
        date="2026-11-30",
        prompt_lookup=False,
        tools=[
            generation_pb2.Tool(
                name="weather", description="The weather.", parameters_json_schema=json.dumps({"type": "object"})
            )
        ],
        tool_choice=generation_pb2.TOOL_CHOICE_REQUIRED,
        tool_choice_name="weather",
        moderation=generation_pb2.ModerationOptions(
            check_output=True,
            policy=moderation_pb2.Policy(threshold=0.5),
            policy_name="strict",
            check_every_tokens=16,
        ),
    )
    assert sent(server) == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (JsonFormat({"type": "array"}), {"json_schema": generation_pb2.JsonSchemaFormat(schema='{"type": "array"}')}),
        (RegexFormat("a+"), {"regex": generation_pb2.RegexFormat(pattern="a+")}),
        (ChoiceFormat(("yes", "no")), {"choice": generation_pb2.ChoiceFormat(choices=["yes", "no"])}),
    ],
)
def test_formats(server: FakeServer, client: GuardClient, wanted: OutputFormat, message: dict[str, Any]) -> None:
    client.generate("hi", GenerationOptions(output_format=wanted))
    assert sent(server).response_format == generation_pb2.ResponseFormat(**message)


def test_plain_text_is_a_prompt_and_messages_cannot_be(server: FakeServer, client: GuardClient) -> None:
    client.generate("Once upon", GenerationOptions(plain=True))
    assert (sent(server).prompt, list(sent(server).messages)) == ("Once upon", [])
    with pytest.raises(InvalidInputError, match="text"):
        client.generate([Message(Role.USER, "hi")], GenerationOptions(plain=True))


def test_calls_and_results_of_tools_are_sent(server: FakeServer, client: GuardClient) -> None:
    call = ToolCall("c1", "weather", '{"city":"Oslo"}')
    messages = [
        Message(Role.USER, "rain?"),
        Message(Role.ASSISTANT, "", (call,)),
        Message(Role.TOOL, "no", tool_call_id="c1"),
    ]
    client.generate(messages)
    _, assistant, tool = sent(server).messages
    assert list(assistant.tool_calls) == [CALL]
    assert (tool.role, tool.tool_call_id) == (moderation_pb2.ROLE_TOOL, "c1")


def test_everything_in_the_answer_is_read(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(
        request_id="r",
        model="m",
        text="He",
        finish_reason=STOP,
        usage=USAGE,
        timings=moderation_pb2.Timings(total=Duration(nanos=250_000_000)),
        tool_calls=[CALL],
        logprobs=[TOKEN],
        further_choices=[generation_pb2.Choice(index=1, text="It", finish_reason=LENGTH)],
        tokens_per_second=12.5,
        moderation=generation_pb2.ModerationResult(output=judged()),
    )
    result = client.generate("hi")
    assert result.tool_calls == (ToolCall("c1", "weather", '{"city":"Oslo"}'),)
    assert result.logprobs == (READ_TOKEN,)
    assert result.further_choices == (GeneratedChoice("It", "length"),)
    assert (result.tokens_per_second, result.timings.total_s) == (12.5, 0.25)
    assert (result.usage.drafted_tokens, result.usage.accepted_tokens) == (3, 2)
    assert result.moderation is not None
    assert result.moderation.input is None
    assert result.moderation.output is not None and result.moderation.output.verdict is Verdict.UNSAFE


@pytest.mark.parametrize(
    "broken",
    [
        {"further_choices": [generation_pb2.Choice(text="It")]},
        {"moderation": generation_pb2.ModerationResult(input=moderation_pb2.ClassifyResponse())},
    ],
)
def test_a_part_that_is_no_answer_is_an_error(server: FakeServer, client: GuardClient, broken: dict[str, Any]) -> None:
    server.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(finish_reason=STOP, **broken)
    with pytest.raises(NoAnswerError):
        client.generate("hi")


FIRST = generation_pb2.StreamGenerateResponse(request_id="r", model="m")
CHOICES = [
    generation_pb2.StreamGenerateResponse(text="He", token_count=1, logprobs=[TOKEN]),
    generation_pb2.StreamGenerateResponse(text="It", token_count=2, choice_index=1),
    generation_pb2.StreamGenerateResponse(text="y", token_count=1),
    generation_pb2.StreamGenerateResponse(finish_reason=STOP, tool_calls=[CALL]),
]
LAST = generation_pb2.StreamGenerateResponse(choice_index=1, finish_reason=LENGTH, usage=USAGE, tokens_per_second=4.0)


def test_streamed_choices_are_kept_apart(server: FakeServer, client: GuardClient) -> None:
    server.handlers["StreamGenerate"] = lambda request, context: iter([FIRST, *CHOICES, LAST])
    stream = client.stream_generate("hi", GenerationOptions(choices=2))
    call = ToolCall("c1", "weather", '{"city":"Oslo"}')
    assert list(stream) == [
        Delta("He", 1, 0, (), (READ_TOKEN,)),
        Delta("It", 2, 1),
        Delta("y", 1),
        Delta("", 0, 0, (call,)),
    ]
    result = stream.result()
    assert (result.text, result.finish_reason) == ("Hey", "stop")
    assert (result.tool_calls, result.logprobs) == ((call,), (READ_TOKEN,))
    assert result.further_choices == (GeneratedChoice("It", "length"),)
    assert (result.tokens_per_second, result.usage.completion_tokens) == (4.0, 5)


@pytest.mark.parametrize("count", range(1, 5))
def test_choices_that_were_cut_off_are_an_error(server: FakeServer, client: GuardClient, count: int) -> None:
    server.handlers["StreamGenerate"] = lambda request, context: iter([FIRST, *CHOICES[:count]])
    with pytest.raises(NoAnswerError):
        client.stream_generate("hi").result()


def test_a_choice_without_an_end_is_an_error(server: FakeServer, client: GuardClient) -> None:
    server.handlers["StreamGenerate"] = lambda request, context: iter([FIRST, *CHOICES[:3], LAST])
    with pytest.raises(NoAnswerError):
        client.stream_generate("hi").result()


def test_tag(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Tag"] = lambda request, context: generation_pb2.TagResponse(
        request_id="r",
        model="m",
        label="spam",
        scores=[
            generation_pb2.LabelScore(name="spam", probability=0.75),
            generation_pb2.LabelScore(name="news", probability=0.25),
        ],
        usage=USAGE,
    )
    result = client.tag("buy", ["news", Label("spam", "Advertising.")], instruction="Sort mail.", calibrated=False)
    assert (result.label, result.scores) == ("spam", (LabelScore("spam", 0.75), LabelScore("news", 0.25)))
    client.tag([Message(Role.USER, "buy")], ["a", "b"])
    plain, messages = server.requests("Tag")
    assert plain == generation_pb2.TagRequest(
        text="buy",
        labels=[generation_pb2.Label(name="news"), generation_pb2.Label(name="spam", description="Advertising.")],
        instruction="Sort mail.",
        uncalibrated=True,
    )
    assert (messages.text, len(messages.messages), messages.uncalibrated) == ("", 1, False)


@pytest.mark.parametrize(
    "response",
    [
        generation_pb2.TagResponse(),
        generation_pb2.TagResponse(label="a"),
        generation_pb2.TagResponse(label="a", scores=[generation_pb2.LabelScore(name="b", probability=0.6)]),
        generation_pb2.TagResponse(label="a", scores=[generation_pb2.LabelScore(name="a", probability=1.5)]),
    ],
)
def test_a_tag_that_is_no_answer_is_an_error(
    server: FakeServer, client: GuardClient, response: generation_pb2.TagResponse
) -> None:
    server.handlers["Tag"] = lambda request, context: response
    with pytest.raises(NoAnswerError):
        client.tag("x", ["a", "b"])
