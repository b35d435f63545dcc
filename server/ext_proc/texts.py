"""The text in JSON values of OpenAI's API: what somebody wrote, without the words of the API itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from guard.conversation import ToolCall
from guard.errors import InvalidInputError, ModelOutputError
from guard.holdback import spoken

#: Words of the API and of JSON Schema that say nothing, as keys or values.
# fmt: off
_API_WORDS = frozenset({
    "type", "function", "name", "description", "parameters", "properties", "required", "strict", "json_schema",
    "json_object", "schema", "items", "enum", "additionalProperties", "object", "string", "number", "integer",
    "boolean", "array", "null", "text", "content", "custom", "format", "default", "anyOf", "title", "id", "index",
    "role", "auto", "none", "low", "medium", "high", "minimal",
})
# fmt: on
#: Kinds of content that a guard of texts cannot judge.
_UNREADABLE = frozenset({"audio", "image", "images", "image_url", "input_audio", "input_image", "file", "video_url"})


def leaves(value: Any, where: str) -> Iterator[str]:
    """Every string in a JSON value, keys too, but for words of the API. Raises InvalidInputError for images."""
    if isinstance(value, str):
        if value.strip() and value not in _API_WORDS:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key in _UNREADABLE and item:
                raise InvalidInputError(where, "has content that is no text, which cannot be judged")
            yield from leaves(key, where)
            yield from leaves(item, where)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, where)


def rest_of(value: Mapping[str, Any], known: Collection[str], where: str) -> list[str]:
    """The text in what ``value`` has beside the keys ``known``."""
    others = {key: item for key, item in value.items() if key not in known}
    for key, item in others.items():
        if key in _UNREADABLE and item:
            raise InvalidInputError(where, "has content that is no text, which cannot be judged")
    return [text for item in others.values() for text in leaves(item, where)]


def content_text(content: Any, where: str) -> list[str]:
    """The text of a message's content: a string, parts, or nothing. Raises InvalidInputError for other parts."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidInputError(where, "expected text, or a list of parts")
    texts: list[str] = []
    for number, part in enumerate(content):
        if part.get("type") not in ("text", "refusal", "input_text", "output_text"):
            raise InvalidInputError(f"{where}[{number}]", "only parts of type text can be judged")
        texts += leaves(part, f"{where}[{number}]")
    return texts


def call_texts(calls: Any, where: str) -> list[str]:
    """What calls of tools say, a text each. Raises InvalidInputError for calls that cannot be read."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise InvalidInputError(where, "expected a list")
    return [call_text(call, f"{where}[{number}]") for number, call in enumerate(calls)]


def call_text(call: Any, where: str) -> str:
    """What one call says: name and arguments, without the escapes of JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return "\n".join(leaves(call, where))
    name, arguments = function.get("name") or "", function.get("arguments") or "{}"
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise InvalidInputError(where, "expected a function's name and arguments as text")
    try:
        said = spoken(ToolCall("", name, arguments))
    except ModelOutputError:
        raise InvalidInputError(f"{where}.function.arguments", "expected the text of a JSON value") from None
    others = rest_of(call, ("id", "type", "index", "function"), where)
    return "\n".join([said, *others, *rest_of(function, ("name", "arguments"), where)])


def message_text(message: Mapping[str, Any], where: str) -> str:
    """All that a message says, a line for each part."""
    known = ("role", "content", "tool_calls", "function_call", "tool_call_id")
    texts = content_text(message.get("content"), f"{where}.content")
    texts += call_texts(message.get("tool_calls"), f"{where}.tool_calls")
    if message.get("function_call") is not None:
        texts.append(call_text({"function": message["function_call"]}, f"{where}.function_call"))
    return "\n".join(texts + rest_of(message, known, where))
