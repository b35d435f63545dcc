from __future__ import annotations

import pytest

from guard.conversation import (
    MAX_MESSAGES,
    Conversation,
    Message,
    Role,
    Target,
    ToolCall,
    check_generation_turns,
    check_moderation_turns,
)
from guard.errors import InvalidInputError

USER, ASSISTANT, SYSTEM, TOOL = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL


def conversation(*roles: Role) -> Conversation:
    return Conversation(tuple(Message(role, "text") for role in roles))


@pytest.mark.parametrize("content", ["", " \n\t", "\u2003"])
def test_blank_content_is_refused(content: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Conversation((Message(USER, "fine"), Message(ASSISTANT, content)))
    assert caught.value.field == "messages[1].content"


def test_lone_surrogate_is_refused() -> None:
    """Failure test 11."""
    with pytest.raises(InvalidInputError, match="surrogate"):
        Conversation((Message(USER, "a\ud800b"),))


@pytest.mark.parametrize("content", ["a\x00b", "\x1b[31m", "a" + "\u0301" * 10_000])
def test_odd_but_valid_text_is_accepted(content: str) -> None:
    """Failure test 11."""
    assert Conversation((Message(USER, content),)).messages[0].content == content


def test_message_count_is_bounded() -> None:
    with pytest.raises(InvalidInputError, match=str(MAX_MESSAGES)):
        conversation(*[USER] * (MAX_MESSAGES + 1))
    with pytest.raises(InvalidInputError, match="at least one"):
        Conversation(())


@pytest.mark.parametrize("roles", [(USER,), (USER, ASSISTANT, USER), (ASSISTANT, USER)])
def test_prompt_target_wants_the_user_last(roles: tuple[Role, ...]) -> None:
    check_moderation_turns(conversation(*roles), Target.PROMPT)
    with pytest.raises(InvalidInputError, match="response is judged"):
        check_moderation_turns(conversation(*roles), Target.RESPONSE)


@pytest.mark.parametrize("roles", [(ASSISTANT,), (USER, ASSISTANT)])
def test_response_target_wants_the_assistant_last(roles: tuple[Role, ...]) -> None:
    check_moderation_turns(conversation(*roles), Target.RESPONSE)
    with pytest.raises(InvalidInputError, match="prompt is judged"):
        check_moderation_turns(conversation(*roles), Target.PROMPT)


@pytest.mark.parametrize(
    ("roles", "field"),
    [((USER, USER), "messages[1].role"), ((SYSTEM, USER), "messages[0].role"), ((TOOL,), "messages[0].role")],
)
def test_moderated_turns_alternate(roles: tuple[Role, ...], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_moderation_turns(conversation(*roles), Target.PROMPT)
    assert caught.value.field == field


def test_generation_turns() -> None:
    check_generation_turns(conversation(SYSTEM, USER, ASSISTANT, USER))
    for roles, field in (
        ((USER, SYSTEM, USER), "messages[1].role"),
        ((USER, ASSISTANT), "messages[1].role"),
        ((USER, TOOL), "messages[1].tool_call_id"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            check_generation_turns(conversation(*roles))
        assert caught.value.field == field


def call(ident: str = "a", name: str = "f", arguments: str = "{}") -> ToolCall:
    return ToolCall(ident, name, arguments)


def calling(*calls: ToolCall) -> Message:
    return Message(ASSISTANT, "", calls)


def result(ident: str) -> Message:
    return Message(TOOL, "", tool_call_id=ident)


ASKED = Message(USER, "text")


def test_every_call_has_its_result() -> None:
    two = calling(call("a"), call("b", arguments='{"x": [1, null]}'))
    check_generation_turns(Conversation((ASKED, two, result("b"), result("a"))))
    check_generation_turns(Conversation((ASKED, two, result("a"), result("b"), calling(call("a")), result("a"), ASKED)))


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ((calling(call("a")), result("b")), "messages[2].tool_call_id"),
        ((calling(call("a")), result("a"), result("a")), "messages[3].tool_call_id"),
        ((calling(call("a"), call("b")), result("a"), ASKED), "messages[3].role"),
        ((calling(call("a"), call("b")), result("a")), "messages[2].role"),
        ((calling(call("a")),), "messages[1].role"),
        ((result("a"),), "messages[1].tool_call_id"),
        ((Message(USER, "text", (call(),)),), "messages[1].tool_calls"),
        ((Message(USER, "text", (), "a"),), "messages[1].tool_call_id"),
        ((calling(*(call(str(index)) for index in range(65))),), "messages[1].tool_calls"),
        ((calling(call("a"), call("a")),), "messages[1].tool_calls[1].id"),
        ((calling(call("")),), "messages[1].tool_calls[0].id"),
        ((calling(call("x" * 129)),), "messages[1].tool_calls[0].id"),
        ((calling(call(name="no space")),), "messages[1].tool_calls[0].name"),
        ((calling(call(name="f\n")),), "messages[1].tool_calls[0].name"),
        ((calling(call(arguments="")),), "messages[1].tool_calls[0].arguments"),
        ((calling(call(arguments="[]")),), "messages[1].tool_calls[0].arguments"),
        ((calling(call(arguments='{"a": NaN}')),), "messages[1].tool_calls[0].arguments"),
        ((calling(call(arguments='{"a": 1e999}')),), "messages[1].tool_calls[0].arguments"),
        ((calling(call(arguments='{"a": 1, "a": 2}')),), "messages[1].tool_calls[0].arguments"),
        ((calling(call(arguments='{"a": "\\ud800"}')),), "messages[1].tool_calls[0].arguments"),
        ((calling(call(arguments='{"a": ' + "[" * 100_000)),), "messages[1].tool_calls[0].arguments"),
        ((calling(call(arguments='{"a": ' + "[" * 64 + "]" * 64 + "}")),), "messages[1].tool_calls[0].arguments"),
    ],
)
def test_calls_and_results_that_do_not_fit(messages: tuple[Message, ...], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_generation_turns(Conversation((ASKED, *messages)))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (calling(call("\ud800")), "messages[1].tool_calls[0].id"),
        (calling(call(arguments="\ud800")), "messages[1].tool_calls[0].arguments"),
        (result("\ud800"), "messages[1].tool_call_id"),
    ],
)
def test_lone_surrogates_of_calls_are_refused(message: Message, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Conversation((ASKED, message))
    assert caught.value.field == field


def test_a_moderated_conversation_has_no_calls_that_would_go_unjudged() -> None:
    for message in (calling(call()), Message(ASSISTANT, "text", (), "a")):
        with pytest.raises(InvalidInputError) as caught:
            check_moderation_turns(Conversation((ASKED, message)), Target.RESPONSE)
        assert caught.value.field == "messages[1].tool_calls"
