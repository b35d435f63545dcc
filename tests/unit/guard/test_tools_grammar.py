from __future__ import annotations

import json
import random
from typing import Any

import llguidance
import pytest

from guard.generation import Tool, ToolChoice, ToolMode
from guard.tools.grammar import forced_format
from guard.tools.schema import check_tools
from guard.tools.stream import ToolReader

REQUIRED = ToolChoice(ToolMode.REQUIRED)
TREE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}}
TOOLS = (
    Tool("weather", "", {"type": "object", "properties": {"city": {"enum": ["Rome", "Köln"]}}, "required": ["city"]}),
    Tool("plant", "", {"type": "object", "properties": {"tree": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": TREE}}),
    Tool("any-thing", "", {"type": "object", "additionalProperties": {"type": ["integer", "null"]}}),
    Tool("nothing"),
    Tool("dated", "", {"type": "object", "properties": {"day": {"pattern": "^2026-[01]\\d$"}}, "required": ["day"]}),
)


class Bytes:
    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def written(schema: Any, seed: int) -> str:
    """A text that the grammar of ``schema`` lets through, each byte drawn at random, closing quotes and brackets more
    often so that it ends.
    """
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), slices=[])
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.is_error(), matcher.get_error()
    chosen, draw = bytearray(), random.Random(seed)
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(257) if mask[token // 8] >> (token % 8) & 1]
        closing = [token for token in allowed if token in b'"}]' or token == 256]
        token = draw.choice(closing if closing and draw.random() < 0.5 else allowed)
        assert matcher.consume_token(token), matcher.get_error()
        if token != 256:
            chosen.append(token)
    return chosen.decode()


@pytest.mark.parametrize(
    "choice", [REQUIRED, *(ToolChoice(name=tool.name) for tool in TOOLS)], ids=lambda c: c.name or "any"
)
def test_whatever_the_grammar_lets_through_is_a_call(choice: ToolChoice) -> None:
    check_tools(TOOLS, choice)
    schema = forced_format(TOOLS, choice).schema
    names = set()
    for seed in range(60 if choice.name else 200):
        reader = ToolReader(TOOLS, choice)
        assert reader.feed(written(schema, seed)) == ""
        text, (call,) = reader.finish()
        names.add(call.name)
        assert text == ""
        assert isinstance(json.loads(call.arguments), dict)
    assert names == ({choice.name} if choice.name else {tool.name for tool in TOOLS})


@pytest.mark.parametrize(
    ("schema", "narrowed"),
    [
        ({"properties": {"a": {}}}, True),
        ({}, True),
        ({"additionalProperties": {"type": "string"}}, False),
        ({"required": ["a"]}, False),
        ({"minProperties": 1}, False),
        ({"allOf": [{"required": ["a"]}]}, False),
    ],
)
def test_unmentioned_properties_are_left_out_where_none_is_needed(schema: dict[str, Any], narrowed: bool) -> None:
    forced = forced_format([Tool("f", "", {"type": "object", **schema})], REQUIRED).schema
    assert (forced["$defs"]["arguments0"].get("additionalProperties") is False) is narrowed


def test_a_property_may_be_called_like_a_keyword() -> None:
    schema = {"type": "object", "properties": {"$ref": {"type": "string"}, "me": {"$ref": "#"}}}
    forced = forced_format([Tool("f", "", schema)], REQUIRED).schema["$defs"]["arguments0"]
    assert forced["properties"] == {"$ref": {"type": "string"}, "me": {"$ref": "#/$defs/arguments0"}}
