"""Strict reading of JSON objects: every field is present, of its type, and nothing is left over."""

from __future__ import annotations

from typing import Any, TypeVar

from guard.errors import BundleError

T = TypeVar("T")


class Fields:
    """Takes the fields of one JSON object one by one; ``finish`` refuses what nobody took."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where}: expected an object")
        self._left: dict[str, Any] = dict(value)
        self._where = where

    def _pop(self, name: str) -> Any:
        if name not in self._left:
            raise BundleError(f"{self._where}.{name}: missing")
        return self._left.pop(name)

    def take(self, kind: type[T], name: str) -> T:
        """The field ``name``, exactly of type ``kind`` (an int is accepted for float, a bool never for int)."""
        return _checked(self._pop(name), kind, f"{self._where}.{name}")

    def take_optional(self, kind: type[T], name: str) -> T | None:
        """As ``take``, but null is allowed (the field itself must be there)."""
        value = self._pop(name)
        return None if value is None else _checked(value, kind, f"{self._where}.{name}")

    def take_tuple(self, kind: type[T], name: str) -> tuple[T, ...]:
        """A JSON array whose items all have type ``kind``."""
        items = self.take(list, name)
        return tuple(_checked(item, kind, f"{self._where}.{name}[{index}]") for index, item in enumerate(items))

    def take_map(self, kind: type[T], name: str) -> dict[str, T]:
        """A JSON object whose values all have type ``kind``."""
        items = self.take(dict, name)
        return {key: _checked(item, kind, f"{self._where}.{name}.{key}") for key, item in items.items()}

    def take_object(self, name: str) -> dict[str, Any]:
        """A nested JSON object, for a ``Fields`` of its own."""
        return self.take(dict, name)

    def finish(self) -> None:
        """Raises BundleError when fields are left that nobody knows: a newer or a forged manifest is not half-read."""
        if self._left:
            raise BundleError(f"{self._where}: unknown field {sorted(self._left)[0]!r}")


def _checked(value: Any, kind: type[T], where: str) -> T:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise BundleError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
    return value
