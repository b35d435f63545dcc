from __future__ import annotations

import pytest

from guard.conversation import (
    MAX_MESSAGES,
    Conversation,
    Message,
    Role,
    Target,
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
        ((USER, TOOL), "messages[1].role"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            check_generation_turns(conversation(*roles))
        assert caught.value.field == field
