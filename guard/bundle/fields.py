"""Strict reading of JSON into dataclasses: every field is present, of its type, and nothing is left over."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from guard.errors import BundleError

T = TypeVar("T")


def read_object(kind: type[T], value: Any, where: str) -> T:
    """The JSON object ``value`` as the dataclass ``kind``, nested ones included; ``where`` is its path in messages.
    Only a field that has a default may be left out.

    Field types may be str, int, float, bool, other dataclasses, ``tuple[X, ...]``, ``Mapping[str, X]``, ``Literal`` and
    ``X | None``. Raises BundleError naming the field that is missing, unknown (a newer or forged manifest is not
    half-read) or mistyped.
    """
    if type(value) is not dict:
        raise BundleError(f"{where}: expected an object")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(cast(Any, kind))]
    for field in fields(cast(Any, kind)):
        if field.name not in value and field.default is MISSING:
            raise BundleError(f"{where}.{field.name}: missing")
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise BundleError(f"{where}: unknown field {unknown[0]!r}")
    return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in names if name in value})


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _read(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise BundleError(f"{where}: expected one of {', '.join(arguments)}")
        return value
    if origin is tuple:
        items = _exactly(list, value, where)
        return tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is Mapping:
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in _exactly(dict, value, where).items()}
    if is_dataclass(hint):
        return read_object(cast(type[Any], hint), value, where)
    return _exactly(hint, value, where)


def _exactly(kind: Any, value: Any, where: str) -> Any:
    """``value`` if it has just this type: a bool is no int here, but an int is accepted for a float. All are finite."""
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:  # Python's JSON has NaN and 1e999; as a tolerance, both allow anything
            raise BundleError(f"{where}: expected a finite number")
        return float(value)
    if type(value) is not kind:
        raise BundleError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
    return value
