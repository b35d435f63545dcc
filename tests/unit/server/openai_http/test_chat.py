"""Whatever JSON comes becomes a request or an error that names a field, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import InvalidInputError
from guard.v1 import generation_pb2, moderation_pb2
from server.openai_http import chat, moderations
from server.openai_http.fields import Fields, read_body

KEYS = st.sampled_from(
    [
        *("messages", "role", "content", "type", "text", "model", "tools", "function", "name", "parameters"),
        *("tool_calls", "id", "arguments", "tool_choice", "response_format", "json_schema", "schema", "stop", "n"),
        *("guardlet", "moderation", "policy", "target", "input", "logit_bias", "max_tokens", "stream", "seed", "top_k"),
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["user", "assistant", "tool", "text", "function", "json_schema", "auto", "default", "", "\ue000"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=20
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=8)


def generated(body: dict[str, Any], moderated: bool = False) -> generation_pb2.GenerateRequest:
    """The request for ``body``, beside the least that is needed."""
    request = generation_pb2.GenerateRequest()
    whole = {"model": "default", "messages": [{"role": "user", "content": "hi"}], **body}
    chat.generate_request(read_body(json.dumps(whole).encode()), request, moderated)
    return request


@given(OBJECTS)
def test_any_json_is_a_completion_or_an_error_with_a_path(body: dict[str, Any]) -> None:
    fields = Fields(body, "")
    try:
        chat.wants_usage(fields)
        chat.generate_request(fields, generation_pb2.GenerateRequest(), moderated=True)
    except InvalidInputError as error:
        assert error.field.partition(".")[0].partition("[")[0] in (*body, "model", "?")


@given(OBJECTS)
def test_any_json_is_a_moderation_or_an_error_with_a_path(body: dict[str, Any]) -> None:
    try:
        moderations.batch_request(Fields(body, ""))
    except InvalidInputError as error:
        assert error.field.partition(".")[0].partition("[")[0] in (*body, "input", "?")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_an_error(body: bytes) -> None:
    try:
        read_body(body)
    except InvalidInputError as error:
        assert error.field == "body"


def test_every_field_arrives() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    request = generated(
        {
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
                {"role": "tool", "tool_call_id": "c1", "content": "done"},
            ],
            "tools": [
                {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
            ],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "max_completion_tokens": 5,
            "top_p": 1,
            "n": 2,
            "stop": "x",
            "logit_bias": {"5": 1},
            "guardlet": {"moderation": {"check_output": True, "policy_name": "p"}, "top_k": 3},
        }
    )
    assert [message.role for message in request.messages] == [
        moderation_pb2.ROLE_SYSTEM,
        moderation_pb2.ROLE_USER,
        moderation_pb2.ROLE_ASSISTANT,
        moderation_pb2.ROLE_TOOL,
    ]
    assert request.messages[1].content == "a\nb"
    assert request.messages[2].tool_calls[0].arguments_json == "{}"
    assert request.messages[3].tool_call_id == "c1"
    assert request.tools[0].parameters_json_schema == '{"type":"object"}'
    assert (request.tool_choice_name, request.model) == ("f", "")
    assert (request.max_tokens, request.top_p, request.choices, request.top_k) == (5, 1.0, 2, 3)
    assert list(request.stop) == ["x"] and dict(request.logit_bias) == {5: 1.0}
    assert (request.moderation.check_input, request.moderation.check_output) == (False, True)


def test_what_is_not_set_stays_the_servers() -> None:
    fields = {descriptor.name for descriptor, _ in generated({}).ListFields()}
    assert fields == {"messages"}


@pytest.mark.parametrize("extension", [None, {"moderation": None}, {"moderation": {"check_output": True}}])
def test_a_watched_caller_cannot_ask_for_less(extension: dict[str, Any] | None) -> None:
    moderation = generated({"guardlet": extension}, moderated=True).moderation
    assert moderation.check_input and moderation.check_output


def test_a_format_is_given_once() -> None:
    both = {"response_format": {"type": "json_object"}, "guardlet": {"response_format": {"regex": {"pattern": "a"}}}}
    with pytest.raises(InvalidInputError, match="not together"):
        generated(both)
    assert generated({"response_format": {"type": "json_object"}}).response_format.json_schema.schema == ""
    assert generated(dict(list(both.items())[1:])).response_format.regex.pattern == "a"


def test_names_of_fields_are_repeated_only_if_they_can_be_ones() -> None:
    with pytest.raises(InvalidInputError) as caught:
        generated({"my secret text": 1})
    assert "secret" not in str(caught.value)
