"""JSON that others wrote, read with the path of what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from guard.errors import InvalidInputError
from guard.tools.values import read_object
from server.errors import UnsupportedFieldError

T = TypeVar("T")
#: The field that holds what OpenAI's requests and answers have no place for.
EXTENSION = "guardlet"
_NAMES: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


def read_body(body: bytes) -> Fields:
    """The JSON object that ``body`` is; raises InvalidInputError."""
    try:
        return Fields(read_object(body.decode()), "")
    except ValueError:
        problem = "expected one JSON object in UTF-8, no key twice, finite numbers, at most 64 levels"
        raise InvalidInputError("body", problem) from None


class Fields:
    """The fields of a JSON object at ``path``. A field that is null is one that is not there.

    Every method raises InvalidInputError with the path of the field.
    """

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._path = path

    def path(self, name: str) -> str:
        """Of the field ``name``."""
        return f"{self._path}.{name}" if self._path else name

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def any(self, name: str) -> Any:
        """The value as it is; None when it is not there."""
        return self._values.get(name)

    def get(self, name: str, kind: type[T]) -> T | None:
        """The value, which must be a ``kind``; None when it is not there. A whole number is a number too."""
        value = self._values.get(name)
        if value is None:
            return None
        if kind is float and type(value) is int:
            return value  # type: ignore[return-value]
        if type(value) is not kind:
            raise InvalidInputError(self.path(name), f"expected {_NAMES[kind]}")
        return value

    def need(self, name: str, kind: type[T]) -> T:
        """The value, which must be there."""
        value = self.get(name, kind)
        if value is None:
            raise InvalidInputError(self.path(name), "is required")
        return value

    def fields(self, name: str) -> Fields | None:
        """The object in the field ``name``; None when it is not there."""
        value = self.get(name, dict)
        return None if value is None else Fields(value, self.path(name))

    def objects(self, name: str) -> list[Fields]:
        """The objects of the list in the field ``name``; none when it is not there."""
        found = []
        for index, item in enumerate(self.get(name, list) or ()):
            where = f"{self.path(name)}[{index}]"
            if not isinstance(item, dict):
                raise InvalidInputError(where, "expected an object")
            found.append(Fields(item, where))
        return found

    def only(self, known: Collection[str]) -> None:
        """Refuse the first field that is not among ``known``, by name; empty lists and objects say nothing."""
        for name, value in self._values.items():
            if name not in known and value != [] and value != {}:
                # The name is the caller's own text: only what can be a field's name is repeated.
                shown = self.path(name) if name.isidentifier() and len(name) <= 64 else self.path("?")
                raise UnsupportedFieldError(shown, "this server has no such field")

    def text(self, name: str) -> str:
        """The text of a message: a string, or parts of type text, which become lines. "" when it is not there."""
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value or ""
        if not isinstance(value, list):
            raise InvalidInputError(self.path(name), "expected text or a list of parts")
        return "\n".join(part_text(part) for part in self.objects(name))


def part_text(part: Fields) -> str:
    """The text of a part of a message; raises InvalidInputError, by name for images and what else is not text."""
    kind = part.need("type", str)
    if kind != "text":
        shown = kind if kind in ("image_url", "input_audio", "file", "refusal") else "this type"
        raise UnsupportedFieldError(part.path("type"), f"{shown} is not read here; the models read text only")
    part.only(("type", "text"))
    return part.need("text", str)


def put(message: Message, name: str, value: Any, where: str) -> None:
    """Set a field of ``message`` to ``value`` unless it is None. InvalidInputError for ``where`` if it does not fit."""
    if value is None:
        return
    try:
        setattr(message, name, value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(where, "is out of range") from None


def extend(message: Message, extension: Fields | None, known: Collection[str]) -> None:
    """Set fields of ``message`` from their protobuf JSON in ``extension``; raises InvalidInputError."""
    if extension is None:
        return
    extension.only(known)
    for name in extension:
        try:
            json_format.ParseDict({name: extension.any(name)}, message)
        except (json_format.ParseError, ValueError, TypeError, OverflowError, RecursionError):
            problem = f"does not read as {message.DESCRIPTOR.full_name}.{name} in protobuf's JSON"
            raise InvalidInputError(extension.path(name), problem) from None


def shown(message: Message) -> dict[str, Any]:
    """``message`` as protobuf's JSON with the contract's own names; fields without presence are there when not set."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
