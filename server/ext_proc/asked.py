"""Requests of OpenAI's API: what of them has to be judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from guard.conversation import MAX_MESSAGES, Conversation, Message, Role, Target
from guard.errors import InvalidInputError
from server.ext_proc.texts import leaves, message_text, rest_of

#: Fields of a request whose strings no model reads.
# fmt: off
_CONTROL = frozenset({
    "model", "messages", "prompt", "stream", "stream_options", "user", "service_tier", "reasoning_effort",
    "verbosity", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store", "stop", "logit_bias",
    "tool_choice", "function_call", "metadata", "modalities", "seed", "temperature", "top_p", "n", "max_tokens",
    "max_completion_tokens", "parallel_tool_calls",
})
# fmt: on
_ROLES = {
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}


@dataclass(frozen=True)
class Question:
    """One thing to judge: the last message of ``conversation``."""

    conversation: Conversation
    target: Target


@dataclass(frozen=True)
class Asked:
    """``questions``: the last turn first, as it is the likeliest to be unsafe, then what else the request says.
    ``context``: the turns that an answer is judged after; they end with the user's.
    """

    questions: tuple[Question, ...]
    context: tuple[Message, ...]


def read_chat(body: dict[str, Any], all_turns: bool = True) -> Asked:
    """A request to /v1/chat/completions. Raises InvalidInputError naming the field.

    Turns of user and assistant are judged in their context. A guard's prompt has no other roles, so instructions,
    results of tools and descriptions of tools are judged apart, each as a prompt of its own.
    """
    _check_readable(body)
    given = body.get("messages")
    if not isinstance(given, list) or not given or len(given) > MAX_MESSAGES:
        raise InvalidInputError("messages", f"expected a list of 1 to {MAX_MESSAGES} messages")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    spoken = [each for each in messages if each.role in (Role.USER, Role.ASSISTANT) and each.content.strip()]
    turns = tuple(
        Message(role, "\n\n".join(message.content for message in turn))
        for role, turn in groupby(spoken, key=lambda message: message.role)
    )
    ends = range(len(turns), 0, -1) if all_turns else range(len(turns), max(0, len(turns) - 1), -1)
    questions = [_last_of(turns[:end]) for end in ends]
    apart = [each.content for each in messages if each.role in (Role.SYSTEM, Role.TOOL)]
    apart.append("\n".join(rest_of(body, _CONTROL, "body")))
    questions += _apart(apart)
    if not questions:
        raise InvalidInputError("messages", "there is no text to judge")
    return Asked(tuple(questions), turns[:-1] if turns and turns[-1].role is Role.ASSISTANT else turns)


def read_completion(body: dict[str, Any], all_turns: bool = True) -> Asked:
    """A request to /v1/completions: each prompt is judged. Raises InvalidInputError naming the field."""
    _check_readable(body)
    prompt = body.get("prompt")
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or len(prompts) > MAX_MESSAGES or not all(isinstance(each, str) for each in prompts):
        raise InvalidInputError("prompt", f"expected text, or a list of 1 to {MAX_MESSAGES} texts; tokens are not read")
    questions = _apart([*prompts, "\n".join(rest_of(body, _CONTROL, "body"))])
    if not questions:
        raise InvalidInputError("prompt", "there is no text to judge")
    alone = len(prompts) == 1 and bool(prompts[0].strip())
    return Asked(questions, (Message(Role.USER, prompts[0]),) if alone else ())


def _message(given: Any, where: str) -> Message:
    name = given.get("role") if isinstance(given, dict) else None
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise InvalidInputError(f"{where}.role", f"expected one of {', '.join(_ROLES)}")
    return Message(role, message_text(given, where))


def _last_of(turns: tuple[Message, ...]) -> Question:
    return Question(Conversation(turns), Target.PROMPT if turns[-1].role is Role.USER else Target.RESPONSE)


def _apart(texts: Iterable[str]) -> tuple[Question, ...]:
    """A question for each text that says something, each once."""
    return tuple(_last_of((Message(Role.USER, text),)) for text in dict.fromkeys(texts) if text.strip())


def _check_readable(body: dict[str, Any]) -> None:
    """Refuse what asks for answers that nobody here could judge."""
    for name in ("logprobs", "top_logprobs"):
        if body.get(name) not in (None, False):
            raise InvalidInputError(name, "would show tokens that are not judged")
    if any(text != "text" for text in body.get("modalities") or ()) or list(leaves(body.get("audio"), "audio")):
        raise InvalidInputError("modalities", "only text can be judged")
