"""Conversations: who said what. Frozen, and valid once constructed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from guard.errors import InvalidInputError

#: More messages than any real conversation has; bounds the work of validation.
MAX_MESSAGES = 1024


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
    """One to MAX_MESSAGES messages, none empty or blank, all valid Unicode.

    Raises InvalidInputError naming the message that is not.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidInputError("messages", "at least one message is required")
        if len(self.messages) > MAX_MESSAGES:
            raise InvalidInputError("messages", f"{len(self.messages)} messages, the limit is {MAX_MESSAGES}")
        for index, message in enumerate(self.messages):
            field = f"messages[{index}].content"
            if not message.content.strip() and not message.tool_calls:
                raise InvalidInputError(field, "is empty or only white space")
            try:
                message.content.encode()
            except UnicodeEncodeError:
                raise InvalidInputError(field, "has a lone surrogate, which is not valid Unicode") from None


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
    """Check what a chat template can express: an optional system message first, and a user message last.

    Raises InvalidInputError naming the message.
    """
    for index, message in enumerate(conversation.messages):
        field = f"messages[{index}].role"
        if message.role is Role.SYSTEM and index > 0:
            raise InvalidInputError(field, "a system message must come first")
        if message.role is Role.TOOL:
            raise InvalidInputError(field, "tool messages are not supported")
    if conversation.messages[-1].role is not Role.USER:
        raise InvalidInputError(
            f"messages[{len(conversation.messages) - 1}].role", "the last message must be the user's"
        )
