"""Conversations: who said what. Frozen, and valid once constructed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from guard.errors import InvalidInputError
from guard.tools.values import read_object

#: More messages than any real conversation has; bounds the work of validation.
MAX_MESSAGES = 1024
#: Calls in one assistant message.
MAX_TOOL_CALLS = 64
#: Characters of a call's id.
MAX_CALL_ID_CHARACTERS = 128
#: What a tool may be called, as in OpenAI's API.
TOOL_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
TOOL_NAME_RULE = 'expected 1 to 64 characters out of A-Z, a-z, 0-9, "_" and "-"'


class Role(Enum):
    """Who wrote a message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"


class Target(Enum):
    """Which turn is judged: the last message must have the matching role, it is never guessed from a message count."""

    PROMPT = "prompt"
    RESPONSE = "response"

    @property
    def role(self) -> Role:
        """The role of the judged (last) message."""
        return Role.USER if self is Target.PROMPT else Role.ASSISTANT


@dataclass(frozen=True)
class ToolCall:
    """A call of a function that the model asked for. ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One message. ``content`` is any Unicode text, control characters included.

    An assistant's message may have ``tool_calls``; a tool's message is the result of the call ``tool_call_id``.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True)
class Conversation:
    """One to MAX_MESSAGES messages, all valid Unicode; only the results of tools and messages with calls may be blank.

    Raises InvalidInputError naming the message that is not.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidInputError("messages", "at least one message is required")
        if len(self.messages) > MAX_MESSAGES:
            raise InvalidInputError("messages", f"{len(self.messages)} messages, the limit is {MAX_MESSAGES}")
        for index, message in enumerate(self.messages):
            field = f"messages[{index}]"
            if not message.content.strip() and not message.tool_calls and message.role is not Role.TOOL:
                raise InvalidInputError(f"{field}.content", "is empty or only white space")
            _check_unicode(f"{field}.content", message.content)
            _check_unicode(f"{field}.tool_call_id", message.tool_call_id)
            for number, call in enumerate(message.tool_calls):
                for name, text in vars(call).items():
                    _check_unicode(f"{field}.tool_calls[{number}].{name}", text)


def check_moderation_turns(conversation: Conversation, target: Target) -> None:
    """Check what a guard prompt can express: user and assistant turns that alternate, the judged one last.

    A conversation may start with the assistant, so that a response can be judged without its prompt.
    Raises InvalidInputError naming the message.
    """
    previous: Role | None = None
    for index, message in enumerate(conversation.messages):
        field = f"messages[{index}].role"
        if message.role not in (Role.USER, Role.ASSISTANT):
            raise InvalidInputError(
                field, f"a moderated conversation has only user and assistant turns, not {message.role.value}"
            )
        if message.tool_calls or message.tool_call_id:
            # What a call says would go unjudged.
            raise InvalidInputError(f"messages[{index}].tool_calls", "a moderated conversation has no tool calls")
        if message.role is previous:
            raise InvalidInputError(field, "user and assistant turns must alternate")
        previous = message.role
    if previous is not target.role:
        last = len(conversation.messages) - 1
        raise InvalidInputError(
            f"messages[{last}].role",
            f"the {target.value} is judged, so the last message must be the {target.role.value}'s",
        )


def check_generation_turns(conversation: Conversation) -> None:
    """Check what a chat template can express: an optional system message first; after an assistant's tool calls, one
    tool message for each, in any order; and last a user's message or the result of a tool.

    Raises InvalidInputError naming the message.
    """
    due: set[str] = set()
    for index, message in enumerate(conversation.messages):
        field = f"messages[{index}]"
        if message.role is Role.SYSTEM and index > 0:
            raise InvalidInputError(f"{field}.role", "a system message must come first")
        if message.role is Role.TOOL:
            if message.tool_call_id not in due:
                raise InvalidInputError(f"{field}.tool_call_id", "names no call that waits for its result here")
            due.remove(message.tool_call_id)
        elif due:
            raise InvalidInputError(f"{field}.role", f"{len(due)} tool calls before it have no result yet")
        elif message.tool_call_id:
            raise InvalidInputError(f"{field}.tool_call_id", "only a tool's message has one")
        if message.tool_calls:
            due = _check_calls(field, message)
    last = len(conversation.messages) - 1
    if due or conversation.messages[last].role not in (Role.USER, Role.TOOL):
        problem = "the last message must be the user's, or the results of all tool calls"
        raise InvalidInputError(f"messages[{last}].role", problem)


def call_arguments(call: ToolCall, field: str) -> dict[str, Any]:
    """The arguments of a call at ``field``. Raises InvalidInputError unless they are a JSON object."""
    try:
        return read_object(call.arguments)
    except ValueError:
        raise InvalidInputError(f"{field}.arguments", "expected the text of a JSON object") from None


def _check_calls(field: str, message: Message) -> set[str]:
    """The ids of a message's calls, which are all different."""
    if message.role is not Role.ASSISTANT:
        raise InvalidInputError(f"{field}.tool_calls", "only an assistant's message has them")
    if len(message.tool_calls) > MAX_TOOL_CALLS:
        raise InvalidInputError(f"{field}.tool_calls", f"{len(message.tool_calls)}, the limit is {MAX_TOOL_CALLS}")
    ids: set[str] = set()
    for number, call in enumerate(message.tool_calls):
        where = f"{field}.tool_calls[{number}]"
        if not 1 <= len(call.id) <= MAX_CALL_ID_CHARACTERS:
            raise InvalidInputError(f"{where}.id", f"expected 1 to {MAX_CALL_ID_CHARACTERS} characters")
        if call.id in ids:
            raise InvalidInputError(f"{where}.id", "the same as another call's")
        if not TOOL_NAME.fullmatch(call.name):
            raise InvalidInputError(f"{where}.name", TOOL_NAME_RULE)
        call_arguments(call, where)
        ids.add(call.id)
    return ids


def _check_unicode(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(field, "has a lone surrogate, which is not valid Unicode") from None
