"""Answers, whole and in chunks: which text is whose."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guard.errors import InvalidInputError
from server.ext_proc.answers import answer_texts, without
from server.ext_proc.written import CallPart, Part, read_chunk


def choice(index: int, content: str, **more: Any) -> dict[str, Any]:
    """One choice of an answer."""
    return {"index": index, "message": {"role": "assistant", "content": content, **more}, "finish_reason": "stop"}


def test_all_texts_of_an_answer_are_found() -> None:
    body = {
        "id": "x",
        "model": "m",
        "choices": [choice(0, "a", reasoning_content="why", refusal=None), choice(1, " "), choice(2, "c")],
        "citations": ["somewhere"],
        "usage": {"total_tokens": 3},
    }
    assert answer_texts(body) == {0: "a\nwhy", 2: "c", -1: "somewhere"}
    assert answer_texts({"error": {"message": "slow down"}}) == {-1: "message\nslow down"}


def test_what_is_blocked_is_gone() -> None:
    body = {
        "id": "x",
        "choices": [choice(0, "good"), choice(1, "bad", reasoning_content="bad too")],
        "citations": ["c"],
    }
    kept = without(body, [1])
    assert kept["choices"][0] == choice(0, "good")
    assert kept["choices"][1]["finish_reason"] == "content_filter"
    assert "bad" not in json.dumps(kept) and "citations" not in kept
    assert "good" not in json.dumps(without(body, [-1]))


@pytest.mark.parametrize("body", [{"choices": {}}, {"choices": ["a"]}, {"choices": [{"message": "a"}]}])
def test_answers_of_another_shape_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        answer_texts(body)


def chunk(delta: Any, **more: Any) -> str:
    """An event's data."""
    return json.dumps({"id": "x", "choices": [{"index": 1, "delta": delta, "finish_reason": None}], **more})


def test_parts_of_a_chunk() -> None:
    found = read_chunk(chunk({"role": "assistant", "content": "a", "reasoning_content": "b", "refusal": None}))
    assert found.parts == (Part(1, "content", "a"), Part(1, "reasoning_content", "b"))
    assert (found.choices, found.finished) == ((1,), ())
    call = {"index": 2, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"'}}
    assert read_chunk(chunk({"tool_calls": [call]})).parts == (CallPart(1, 2, "f", '{"'),)
    assert read_chunk(chunk({"function_call": {"arguments": "x"}})).parts == (CallPart(1, 0, "", "x"),)
    assert read_chunk(chunk({}, citations=["c"])).parts == (Part(-1, "other", "c\n"),)
    assert read_chunk('{"choices": [{"index": 0, "text": "t", "finish_reason": "stop"}]}').finished == (0,)


def test_padding_is_taken_out() -> None:
    assert "obfuscation" not in read_chunk(chunk({"content": "a"}, obfuscation="x7Yz")).body


@pytest.mark.parametrize(
    "data",
    [
        "[]",
        "{broken",
        '{"choices": {}}',
        '{"choices": [{"index": 99}]}',
        chunk("a"),
        chunk({"tool_calls": ["a"]}),
        chunk({"tool_calls": [{"index": -1}]}),
        chunk({"tool_calls": [{"function": {"name": 1}}]}),
        chunk({"audio": {"data": "x"}}),
    ],
)
def test_chunks_of_another_shape_are_refused(data: str) -> None:
    with pytest.raises(InvalidInputError):
        read_chunk(data)
