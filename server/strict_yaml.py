"""YAML files of the operator, read strictly: what is not understood is refused by its path in the file."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from guard.errors import InvalidInputError
from server.errors import SettingsError

MAX_FILE_BYTES = 1 << 20
T = TypeVar("T")


def load_file(setting: str, path: Path, read: Callable[[str], T]) -> T:
    """What ``read`` makes of the text of the file that ``setting`` names.

    Raises SettingsError naming the setting, the file, and the path of what is wrong in it.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(setting, f"{path}: more than {MAX_FILE_BYTES} bytes")
        return read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(setting, f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(setting, f"{path}: not UTF-8") from error
    except InvalidInputError as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(setting, f"{path}: {error}") from None


def parse(text: str) -> Any:
    """The YAML value of ``text``; {} for nothing. Raises InvalidInputError."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise InvalidInputError("the file", f"not YAML ({_place(error.problem_mark)})") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a character that YAML does not allow; a date like 2024-99-99
        raise InvalidInputError("the file", "not YAML") from None
    return {} if value is None else value


def mapping(where: str, value: Any, known: set[str] | None = None) -> dict[str, Any]:
    """``value`` as a mapping from text. ``known``: the keys that it may have. Raises InvalidInputError."""
    if not isinstance(value, dict):
        raise InvalidInputError(where, "expected a mapping")
    prefix = "" if where == "the file" else f"{where}."
    for key in value:
        if not isinstance(key, str):
            raise InvalidInputError(f"{prefix}{key}", "expected text as the key; quote it")
        if known is not None and key not in known:
            raise InvalidInputError(f"{prefix}{key}", f"is unknown; there are: {', '.join(sorted(known))}")
    return value


def sequence(where: str, value: Any) -> list[Any]:
    """``value`` as a list; raises InvalidInputError."""
    if not isinstance(value, list):
        raise InvalidInputError(where, "expected a list")
    return value


def text(where: str, value: Any) -> str:
    """``value`` as text; raises InvalidInputError."""
    if not isinstance(value, str):
        raise InvalidInputError(where, "expected text; quote it")
    return value


def number(where: str, value: Any) -> float:
    """``value`` as a number; raises InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(where, "expected a number")
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        raise InvalidInputError(where, "is too large") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last, and anchors, which may explode."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise InvalidInputError("the file", "YAML aliases are not read; write it out, or use extends")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                place = _place(node.value[position][0].start_mark)
                raise InvalidInputError(str(key)[:64], f"is given twice ({place})")
        return super().construct_mapping(node, deep)


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}" if mark is not None else "somewhere"
