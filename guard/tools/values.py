"""JSON values that others wrote: bounded, finite, valid Unicode, and without a key that comes twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

#: Deeper nesting is refused: what walks values here and in templates calls itself.
MAX_DEPTH = 64


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is not JSON and for what ``check_value`` refuses."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_value(value)
    return value


def read_object(text: str) -> dict[str, Any]:
    """As ``read_json``, for a JSON object only."""
    value = read_json(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def check_value(value: Any) -> None:
    """Raise ValueError unless ``value`` is a JSON value with string keys, finite numbers, no lone surrogate and at most
    MAX_DEPTH levels.
    """
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if isinstance(item, Mapping):
            if not all(isinstance(key, str) for key in item):
                raise ValueError("a key that is not a string")
            waiting += ((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list | tuple):
            waiting += ((part, depth + 1) for part in item)
        elif isinstance(item, str):
            item.encode()  # UnicodeEncodeError, which is a ValueError
        elif isinstance(item, float):
            if item - item != 0:
                raise ValueError("a number that is not finite")
        elif not isinstance(item, bool | int | None):
            raise ValueError("not a JSON value")


def canonical(value: Any) -> str:
    """The JSON text of ``value``: no white space, keys in their order, no escapes that JSON does not ask for."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that comes twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
