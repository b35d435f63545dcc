"""A real model, a real client, formats that a program wants to read: every text parses."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from guard.client import GenerationOptions, GuardClient, RequestRejectedError
from guard.generation import ChoiceFormat, JsonFormat, RegexFormat

TICKET = "The app crashes when I open my invoice, and nobody answers my mails. Order 4711, two lamps."
SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"enum": ["billing", "technical", "shipping"]},
    {
        "type": "object",
        "properties": {"team": {"enum": ["billing", "technical"]}, "urgent": {"type": "boolean"}},
        "required": ["team", "urgent"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "summary": {"type": "string", "maxLength": 60},
            "order": {"type": "integer", "minimum": 0, "maximum": 99999},
            "items": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 2},
        },
        "required": ["summary", "order", "items"],
        "additionalProperties": False,
    },
    {
        "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{2,8}$"}},
        "type": "array",
        "items": {"$ref": "#/$defs/tag"},
        "minItems": 1,
        "maxItems": 3,
    },
]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_json_parses_and_validates(client: GuardClient, schema: dict[str, Any], temperature: float) -> None:
    options = GenerationOptions(max_tokens=200, temperature=temperature, seed=7, output_format=JsonFormat(schema))
    result = client.generate(f"Describe this message as JSON: {TICKET}", options)
    assert result.finish_reason == "stop"
    Draft202012Validator(schema).validate(json.loads(result.text))


def test_a_stream_matches_its_pattern(client: GuardClient) -> None:
    pattern = r"Team: (billing|technical)\nOrder: \d{1,6}"
    options = GenerationOptions(max_tokens=60, temperature=1.0, seed=1, output_format=RegexFormat(pattern))
    stream = client.stream_generate(TICKET, options)
    assert re.fullmatch(pattern, "".join(delta.text for delta in stream), re.ASCII)


def test_every_one_of_several_texts_is_a_choice(client: GuardClient) -> None:
    choices = ("yes", "no", "not sure", "<|im_end|>")
    options = GenerationOptions(max_tokens=30, temperature=1.5, seed=3, choices=4, output_format=ChoiceFormat(choices))
    result = client.generate(f"Is this urgent? {TICKET}", options)
    assert {result.text, *(other.text for other in result.further_choices)} <= set(choices)


def test_max_tokens_that_are_too_few_are_told_apart(client: GuardClient) -> None:
    options = GenerationOptions(max_tokens=3, temperature=0.0, output_format=JsonFormat(SCHEMAS[3]))
    assert client.generate(TICKET, options).finish_reason == "length"


def test_a_schema_that_cannot_be_enforced_is_refused_by_name(client: GuardClient) -> None:
    options = GenerationOptions(max_tokens=3, output_format=JsonFormat({"not": {"type": "string"}}))
    with pytest.raises(RequestRejectedError, match=r"response_format\.json_schema\.schema.*not: not supported"):
        client.generate(TICKET, options)
