"""Chunks of an answer that is being written: which text each adds, to which part of which choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from guard.errors import InvalidInputError
from guard.tools.values import read_json
from server.ext_proc.answers import CONTROL
from server.ext_proc.texts import leaves, rest_of

#: OpenAI pads chunks to one length with letters that mean nothing; they are taken out, as nobody judges them.
_PADDING = "obfuscation"
_CHOICE = frozenset({"index", "delta", "text", "finish_reason", "stop_reason"})
_DELTA = frozenset({"role", "tool_calls", "function_call"})
#: More choices than anybody asks for; each has a KV cache of its own.
MAX_CHOICES = 16
MAX_CALLS = 64


@dataclass(frozen=True)
class Part:
    """``text`` that a chunk adds to the part ``field`` of a choice; -1 is outside of choices."""

    choice: int
    field: str
    text: str


@dataclass(frozen=True)
class CallPart:
    """What a chunk adds to one call of a tool, which can be read once it is complete."""

    choice: int
    number: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Chunk:
    """One event. ``finished``: the choices that say here why they end. ``body`` is what may leave."""

    body: dict[str, Any]
    parts: tuple[Part | CallPart, ...]
    choices: tuple[int, ...]
    finished: tuple[int, ...]


def read_chunk(data: str) -> Chunk:
    """The chunk that an event's data is. Raises InvalidInputError for what cannot be read as one."""
    try:
        body = read_json(data)
    except ValueError:
        raise InvalidInputError("data", "expected a JSON object") from None
    if not isinstance(body, dict):
        raise InvalidInputError("data", "expected a JSON object")
    body.pop(_PADDING, None)
    choices = body.get("choices")
    choices = [] if choices is None else choices
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise InvalidInputError("choices", "expected a list of objects")
    parts: list[Part | CallPart] = [Part(-1, "other", text + "\n") for text in rest_of(body, CONTROL, "data")]
    indices = []
    for choice in choices:
        index = choice.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < MAX_CHOICES:
            raise InvalidInputError("choices.index", f"expected 0 to {MAX_CHOICES - 1}")
        indices.append(index)
        parts += _parts(choice, index)
    ended = [index for index, choice in zip(indices, choices, strict=True) if choice.get("finish_reason")]
    return Chunk(body, tuple(parts), tuple(indices), tuple(ended))


def _parts(choice: dict[str, Any], index: int) -> Iterator[Part | CallPart]:
    delta = choice.get("delta")
    delta = {} if delta is None else delta
    if not isinstance(delta, dict):
        raise InvalidInputError("choices.delta", "expected an object")
    for field, value in (*delta.items(), ("text", choice.get("text"))):
        if field in _DELTA or value is None:
            continue
        if isinstance(value, str):
            if value:
                yield Part(index, field, value)
        else:
            yield from (Part(index, field, text) for text in rest_of({field: value}, (), "choices.delta"))
    yield from (Part(index, "other", text + "\n") for text in rest_of(choice, _CHOICE, "choices"))
    calls = delta.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise InvalidInputError("choices.delta.tool_calls", "expected a list")
    for call in calls or ():
        yield from _call_parts(call, index)
    if delta.get("function_call") is not None:
        yield from _call_parts({"index": 0, "function": delta["function_call"]}, index)


def _call_parts(call: Any, index: int) -> Iterator[Part | CallPart]:
    where = "choices.delta.tool_calls"
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict | None):
        raise InvalidInputError(where, "expected objects")
    number = call.get("index", 0)
    if not isinstance(number, int) or not 0 <= number < MAX_CALLS:
        raise InvalidInputError(f"{where}.index", f"expected 0 to {MAX_CALLS - 1}")
    function = call.get("function") or {}
    name, arguments = function.get("name") or "", function.get("arguments") or ""
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise InvalidInputError(where, "expected a function's name and arguments as text")
    yield CallPart(index, number, name, arguments)
    others = [*rest_of(call, ("id", "type", "index", "function"), where), *leaves(_beside(function), where)]
    yield from (Part(index, "other", text + "\n") for text in others)


def _beside(function: dict[str, Any]) -> list[Any]:
    return [value for key, value in function.items() if key not in ("name", "arguments")]
