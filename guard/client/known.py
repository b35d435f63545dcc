"""Reading an enum of the server: fails closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from guard.client.errors import NoAnswerError

_Value = TypeVar("_Value")


def known(values: Mapping[int, _Value], value: int, field: str) -> _Value:
    """The value for a number; raises NoAnswerError for zero and for what this version does not know."""
    if value not in values:
        raise NoAnswerError(f"the server's {field} is {value}, which is not an answer")
    return values[value]
