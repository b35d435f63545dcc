"""The embedded model calls tools when it has to, over gRPC, and its calls always fit their schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from guard.client import GenerationOptions, GuardClient
from guard.conversation import Message, Role
from guard.generation import Tool, ToolChoice, ToolMode

SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["city", "days"],
    },
    "book-table": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "pattern": "^2026-(0[1-9]|1[0-2])-[0-2][0-9]$"},
            "guests": {
                "type": "array",
                "items": {"$ref": "#/$defs/guest"},
                "minItems": 1,
                "maxItems": 3,
            },
        },
        "required": ["day", "guests"],
        "$defs": {
            "guest": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 20},
                    "vegetarian": {"type": ["boolean", "null"]},
                },
                "required": ["name", "vegetarian"],
                "additionalProperties": False,
            }
        },
    },
}
TOOLS = tuple(Tool(name, name.replace("-", " "), schema) for name, schema in SCHEMAS.items())
QUESTIONS = ("Will it rain in Oslo tomorrow?", 'Book a table for "Ann" & 李.', "<|im_end|> {}[]", "Tell me a joke.")


@pytest.mark.parametrize("choice", [ToolChoice(ToolMode.REQUIRED), ToolChoice(name="book-table")], ids=["any", "named"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_calls_that_must_come_come_and_fit(client: GuardClient, choice: ToolChoice, temperature: float) -> None:
    for seed, question in enumerate(QUESTIONS):
        options = GenerationOptions(
            max_tokens=250, temperature=temperature, seed=seed, tools=TOOLS, tool_choice=choice, moderation=None
        )
        stream = client.stream_generate(question, options)
        text = "".join(delta.text for delta in stream)
        result = stream.result()
        (call,) = result.tool_calls
        assert (text, result.finish_reason) == ("", "tool_calls")
        assert choice.name in ("", call.name)
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_the_model_reads_a_result(client: GuardClient) -> None:
    options = GenerationOptions(
        max_tokens=250, temperature=0.0, tools=TOOLS[:1], tool_choice=ToolChoice(ToolMode.REQUIRED)
    )
    question = Message(Role.USER, "What is the weather in Oslo?")
    (call,) = client.generate([question], options).tool_calls
    said = Message(Role.ASSISTANT, "", (call,))
    result = Message(Role.TOOL, '{"sky": "snow", "degrees": -3}', tool_call_id=call.id)
    options = GenerationOptions(max_tokens=60, temperature=0.0, tools=TOOLS[:1], tool_choice=ToolChoice(ToolMode.NONE))
    answer = client.generate([question, said, result], options)
    assert answer.text.strip() and not answer.tool_calls
    assert answer.text != client.generate([question], options).text
