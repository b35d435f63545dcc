"""What of a request is judged: all that somebody wrote."""

from __future__ import annotations

from typing import Any

import pytest

from guard.conversation import Role
from guard.errors import InvalidInputError
from server.ext_proc.asked import Asked, read_chat, read_completion


def chat(*messages: dict[str, Any], **more: Any) -> Asked:
    """A request with ``messages``."""
    return read_chat({"model": "m", "messages": list(messages), **more})


def judged(asked: Asked) -> list[str]:
    """The texts that are judged, in their order."""
    return [question.conversation.messages[-1].content for question in asked.questions]


def said(role: str, content: Any = None, **more: Any) -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": content, **more}


def call(arguments: str) -> dict[str, Any]:
    """One call of a tool."""
    return {"id": "c", "type": "function", "function": {"name": "run", "arguments": arguments}}


def test_every_turn_is_judged_after_those_before_it_the_last_one_first() -> None:
    asked = chat(said("user", "one"), said("assistant", "two"), said("user", "three"))
    assert judged(asked) == ["three", "two", "one"]
    assert [len(question.conversation.messages) for question in asked.questions] == [3, 2, 1]
    assert [message.content for message in asked.context] == ["one", "two", "three"]


def test_the_last_turn_alone() -> None:
    body = {"messages": [said("user", "one"), said("assistant", "two"), said("user", "three"), said("system", "s")]}
    assert judged(read_chat(body, all_turns=False)) == ["three", "s"]


def test_neighbours_are_one_turn_and_other_roles_are_apart() -> None:
    asked = chat(said("system", "s"), said("user", "a"), said("user", "b"), said("developer", "d"), said("system", "s"))
    assert judged(asked) == ["a\n\nb", "s", "d"]


def test_an_answer_that_was_begun_is_judged_and_is_no_context() -> None:
    asked = chat(said("user", "a"), said("assistant", "Sure, "))
    assert judged(asked) == ["Sure, ", "a"]
    assert [message.role for message in asked.context] == [Role.USER]


def test_calls_and_results_of_tools_are_read_without_escapes() -> None:
    asked = chat(
        said("user", "a"),
        said("assistant", tool_calls=[call('{"q": "\\u0062omb"}')]),
        said("tool", "result", tool_call_id="c"),
    )
    assert judged(asked) == ["run\nq\nbomb", "a", "result"]
    old = chat(said("user", "a"), said("assistant", function_call={"name": "f", "arguments": '{"x": "y"}'}))
    assert judged(old)[0] == "f\nx\ny"


def test_parts_names_and_unknown_fields_are_read() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "extra": "three"}]
    assert judged(chat(said("user", parts, name="Bob", novel={"key": ["four"]}))) == [
        "one\ntwo\nextra\nthree\nBob\nkey\nfour"
    ]


def test_what_a_request_says_beside_messages_is_judged() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "does it", "parameters": {"type": "object"}}}
    asked = chat(said("user", "a"), tools=[tool], prediction={"type": "content", "content": "p"}, temperature=0.5)
    assert judged(asked) == ["a", "f\ndoes it\np"]


def test_completions() -> None:
    asked = read_completion({"prompt": ["a", "b", "a"], "suffix": "s", "model": "m"})
    assert judged(asked) == ["a", "b", "s"]
    assert asked.context == ()
    assert [message.content for message in read_completion({"prompt": "a"}).context] == ["a"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [said("user", "x")] * 2000}, "messages"),
        ({"messages": ["Hi"]}, "messages[0].role"),
        ({"messages": [said("USER", "x")]}, "messages[0].role"),
        ({"messages": [said("user", " ")]}, "messages"),
        ({"messages": [said("user", 7)]}, "messages[0].content"),
        ({"messages": [said("user", [{"type": "input_audio"}])]}, "messages[0].content[0]"),
        ({"messages": [said("user", "x", audio={"data": "x"})]}, "messages[0]"),
        (
            {"messages": [said("assistant", tool_calls=[call("{broken")])]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [said("user", "x")], "logprobs": True}, "logprobs"),
        ({"messages": [said("user", "x")], "modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_chat(body)
    assert caught.value.field == field


@pytest.mark.parametrize("prompt", [None, [], [1, 2], [[1]], "", {"a": "b"}])
def test_prompts_that_are_no_text_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidInputError):
        read_completion({"prompt": prompt})
