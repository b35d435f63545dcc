"""Answers and the calls that they are: tests/data/tool_calls.jsonl, one case a line. No calls: the answer is text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.generation import Tool, ToolChoice
from guard.tools.schema import check_tools
from guard.tools.stream import ToolReader

PART = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}}},
    "required": ["title"],
}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "email": {"type": "string"}}}


def tool(name: str, required: list[str], **properties: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return Tool(name, "", {**schema, "$defs": {"part": PART}})


TOOLS = (
    tool(
        "get_weather",
        ["city"],
        city={"type": "string"},
        unit={"enum": ["celsius", "fahrenheit"]},
        days={"type": "integer", "minimum": 1, "maximum": 14},
    ),
    tool(
        "create_event",
        ["title", "start"],
        title={"type": "string"},
        start={"type": "string", "pattern": "^\\d{4}-\\d{2}-\\d{2}$"},
        attendees={"type": "array", "items": PERSON},
        parts={"type": "array", "items": {"$ref": "#/$defs/part"}},
    ),
    tool("set-light", ["on"], on={"type": "boolean"}, room={"type": ["string", "null"]}, level={"type": "number"}),
    tool("search", ["query"], query={"type": "string"}, filters={"type": "object"}),
    Tool("get_time"),
)
PATH = Path(__file__).parents[2] / "data" / "tool_calls.jsonl"
CASES = [json.loads(line) for line in PATH.read_bytes().splitlines()]


def test_the_tools_are_valid_and_the_cases_many() -> None:
    check_tools(TOOLS, ToolChoice())
    assert sum(bool(case["calls"]) for case in CASES) >= 50
    assert sum(not case["calls"] for case in CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_answer_is_its_calls_or_all_text(case: dict[str, Any], size: int) -> None:
    reader, text = ToolReader(TOOLS, ToolChoice()), case["text"]
    shown = "".join(reader.feed(text[start : start + size]) for start in range(0, len(text), size))
    left, calls = reader.finish()
    assert [[call.name, json.loads(call.arguments)] for call in calls] == case["calls"]
    assert shown + left == ("" if case["calls"] else text)
