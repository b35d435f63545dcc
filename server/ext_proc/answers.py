"""Answers of OpenAI's API as one JSON body: their text by choice, and the same answer without what was blocked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from guard.errors import InvalidInputError
from server.ext_proc.texts import content_text, message_text, rest_of

#: Fields of answers and chunks that hold nothing a model wrote.
CONTROL = frozenset(
    ["id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "timings"]
)
_CHOICE = frozenset({"index", "message", "text", "finish_reason", "stop_reason"})
CONTENT_FILTER = "content_filter"


def answer_texts(body: dict[str, Any]) -> dict[int, str]:
    """What each choice says, by its place in ``choices``; -1 has what is said elsewhere. Blank texts are left out.

    Raises InvalidInputError for what cannot be read as text.
    """
    choices = body.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise InvalidInputError("choices", "expected a list of objects")
    texts = {number: "\n".join(_choice_texts(choice, f"choices[{number}]")) for number, choice in enumerate(choices)}
    texts[-1] = "\n".join(rest_of(body, CONTROL, "body"))
    return {number: text for number, text in texts.items() if text.strip()}


def without(body: dict[str, Any], blocked: Collection[int]) -> dict[str, Any]:
    """The answer with nothing of the ``blocked`` choices, nor of what is said outside of choices."""
    kept = {key: value for key, value in body.items() if key in CONTROL}
    kept["choices"] = [
        _emptied(choice, number) if number in blocked or -1 in blocked else choice
        for number, choice in enumerate(body.get("choices", []))
    ]
    return kept


def _choice_texts(choice: dict[str, Any], where: str) -> list[str]:
    message = choice.get("message")
    if message is not None and not isinstance(message, dict):
        raise InvalidInputError(f"{where}.message", "expected an object")
    texts = [] if message is None else [message_text(message, f"{where}.message")]
    texts += content_text(choice.get("text"), f"{where}.text")
    return texts + rest_of(choice, _CHOICE, where)


def _emptied(choice: dict[str, Any], number: int) -> dict[str, Any]:
    index = choice.get("index")
    said: dict[str, Any] = {"text": ""} if "text" in choice else {"message": {"role": "assistant", "content": ""}}
    return {"index": index if isinstance(index, int) else number, **said, "finish_reason": CONTENT_FILTER}
