"""Tools and response formats."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    TOOL_CHOICE_NONE,
    TOOL_CHOICE_REQUIRED,
    ChoiceFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
    TextFormat,
    Tool,
)
from guard.v1.moderation_pb2 import ROLE_TOOL, Message, ToolCall

from .generating import parts_of, prompt
from .running import ASSISTANT, USER, Running, message, refused

pytest.importorskip("llguidance")

PAINT = Tool(
    name="paint",
    description="Paints the wall.",
    parameters_json_schema=json.dumps(
        {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}},
            "required": ["colour"],
            "additionalProperties": False,
        }
    ),
)
HIDE = Tool(name="hide")
CALL = ToolCall(id="c1", name="paint", arguments_json='{"colour": "red"}')


def json_schema(schema: Any) -> ResponseFormat:
    return ResponseFormat(
        json_schema=JsonSchemaFormat(schema=schema if isinstance(schema, str) else json.dumps(schema))
    )


def regex(pattern: str) -> ResponseFormat:
    return ResponseFormat(regex=RegexFormat(pattern=pattern))


def choice(*choices: str) -> ResponseFormat:
    return ResponseFormat(choice=ChoiceFormat(choices=choices))


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        (choice("cab", "dab"), {"cab", "dab"}),
        (regex("[x-z]{3}!"), {f"{a}{b}{c}!" for a in "xyz" for b in "xyz" for c in "xyz"}),
        (json_schema({"enum": ["red", 7]}), {'"red"', "7"}),
    ],
)
async def test_the_text_has_the_form(server: Running, wanted: ResponseFormat, texts: set[str]) -> None:
    for temperature in (0.0, 2.0):
        fields: dict[str, Any] = {"response_format": wanted, "temperature": temperature, "seed": 3}
        answer = await server.generation.Generate(prompt(**fields))
        assert answer.text in texts
        assert answer.finish_reason == FINISH_REASON_STOP
        parts = await parts_of(server, **fields)
        assert "".join(part.text for part in parts) == answer.text


async def test_each_choice_has_the_form(server: Running) -> None:
    wanted = regex("[a-z]{8}")
    answer = await server.generation.Generate(prompt(response_format=wanted, choices=3, temperature=2.0, seed=1))
    texts = [answer.text, *(other.text for other in answer.further_choices)]
    assert all(len(text) == 8 and text.isalpha() for text in texts)


async def test_text_is_no_form(server: Running) -> None:
    answer = await server.generation.Generate(prompt(response_format=ResponseFormat(text=TextFormat()), max_tokens=5))
    assert answer.text == (await server.generation.Generate(prompt(max_tokens=5))).text


@pytest.mark.parametrize("wanted", [{"tool_choice": TOOL_CHOICE_REQUIRED}, {"tool_choice_name": "paint"}])
async def test_a_call_that_must_come_comes(server: Running, wanted: dict[str, Any]) -> None:
    fields = {"tools": [HIDE, PAINT] if "tool_choice_name" in wanted else [PAINT], **wanted}
    answer = await server.generation.Generate(prompt(**fields))
    assert (answer.finish_reason, answer.text) == (FINISH_REASON_TOOL_CALLS, "")
    (call,) = answer.tool_calls
    assert call.name == "paint" and call.id
    assert json.loads(call.arguments_json)["colour"] in ("red", "blue")

    *_, last = parts = await parts_of(server, **fields)
    (streamed_call,) = [call for part in parts for call in part.tool_calls]
    assert (streamed_call.name, streamed_call.arguments_json) == (call.name, call.arguments_json)
    assert last.finish_reason == FINISH_REASON_TOOL_CALLS
    assert "".join(part.text for part in parts) == ""


async def test_tools_are_shown_unless_none_may_be_called(server: Running) -> None:
    plain = await server.generation.Generate(prompt(max_tokens=5))
    shown = await server.generation.Generate(prompt(max_tokens=5, tools=[PAINT]))
    hidden = await server.generation.Generate(prompt(max_tokens=5, tools=[PAINT], tool_choice=TOOL_CHOICE_NONE))
    assert shown.usage.prompt_tokens > plain.usage.prompt_tokens == hidden.usage.prompt_tokens
    assert shown.finish_reason == hidden.finish_reason == FINISH_REASON_LENGTH


async def test_results_of_tools_are_read(server: Running) -> None:
    messages = [
        message("paint it"),
        Message(role=ASSISTANT, tool_calls=[CALL]),
        Message(role=ROLE_TOOL, content="It is red now.", tool_call_id="c1"),
    ]
    answer = await server.generation.Generate(prompt(messages=messages, tools=[PAINT], max_tokens=5))
    without = await server.generation.Generate(prompt(messages=messages[:1], tools=[PAINT], max_tokens=5))
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens + len("It is red now.")


def asked(*messages: Message) -> dict[str, Any]:
    return {"messages": [message("paint it"), *messages]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": ResponseFormat()}, "response_format"),
        ({"response_format": json_schema("{")}, "response_format.json_schema.schema"),
        ({"response_format": json_schema([1])}, "response_format.json_schema.schema"),
        ({"response_format": json_schema({"type": "colour"})}, "response_format.json_schema.schema"),
        ({"response_format": json_schema({"enum": ["x" * 33_000]})}, "response_format.json_schema.schema"),
        ({"response_format": regex("")}, "response_format.regex.pattern"),
        ({"response_format": regex("(")}, "response_format.regex.pattern"),
        ({"response_format": choice("only")}, "response_format.choice.choices"),
        ({"response_format": choice("a", "")}, "response_format.choice.choices[1]"),
        ({"response_format": choice("a", "a")}, "response_format.choice.choices[1]"),
        ({"response_format": choice("a", "b"), "tools": [PAINT]}, "response_format"),
        ({"tools": [Tool(name="a b")]}, "tools[0].name"),
        ({"tools": [HIDE, PAINT, HIDE]}, "tools[2].name"),
        ({"tools": [Tool(name="f", description="x" * 4001)]}, "tools[0].description"),
        ({"tools": [Tool(name="f", parameters_json_schema="{")]}, "tools[0].parameters_json_schema"),
        ({"tools": [Tool(name="f", parameters_json_schema='{"type": 3}')]}, "tools[0].parameters_json_schema"),
        ({"tools": [Tool(name=f"f{index}") for index in range(65)]}, "tools"),
        ({"tools": [PAINT], "prompt": "go on", "messages": []}, "tools"),
        ({"tool_choice": TOOL_CHOICE_REQUIRED}, "tool_choice"),
        ({"tool_choice": 9}, "tool_choice"),
        ({"tools": [PAINT], "tool_choice_name": "colour"}, "tool_choice_name"),
        ({"tools": [PAINT], "tool_choice_name": "paint", "tool_choice": TOOL_CHOICE_NONE}, "tool_choice_name"),
        (asked(Message(role=ROLE_TOOL, content="done", tool_call_id="c1")), "messages[1].tool_call_id"),
        (asked(Message(role=ASSISTANT, tool_calls=[CALL])), "messages[1].role"),
        (asked(Message(role=ASSISTANT, tool_calls=[CALL]), message("well?")), "messages[2].role"),
        (asked(Message(role=ASSISTANT, tool_calls=[CALL, CALL])), "messages[1].tool_calls[1].id"),
        (
            asked(Message(role=ASSISTANT, tool_calls=[ToolCall(id="c", name="f", arguments_json="[]")])),
            "messages[1].tool_calls[0].arguments_json",
        ),
        (asked(Message(role=USER, content="x", tool_calls=[CALL])), "messages[1].tool_calls"),
    ],
)
async def test_what_is_wrong_is_refused_by_field(server: Running, fields: dict[str, Any], field: str) -> None:
    for call in (server.generation.Generate(prompt(**fields)), parts_of(server, **fields)):
        answer = await refused(call)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(answer.fields) == [field]
