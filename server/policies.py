"""The YAML file of policies, read strictly: what is not understood is refused by its path.

policies.schema.json, beside this module, says the same to editors and other tools.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from guard.errors import InvalidInputError, UnsupportedError
from guard.phrases import Phrase, PhraseList
from guard.policies import PolicyBook, PolicyEntry, check_name, resolve
from guard.policy import CustomCategory, Policy, PolicyAction, PolicyChanges, is_code
from server.errors import SettingsError

MAX_FILE_BYTES = 1 << 20
T = TypeVar("T")
_FIELDS = {
    "extends",
    "threshold",
    "category_thresholds",
    "excluded_categories",
    "custom_categories",
    "action",
    "deny",
    "allow",
}


def load_policies(path: Path | None) -> PolicyBook:
    """The policies of the file; without one, the built-in default alone.

    Raises SettingsError naming the file, and the path of what is wrong in it.
    """
    if path is None:
        return PolicyBook()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError("policies", f"{path}: more than {MAX_FILE_BYTES} bytes")
        return read_policies(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError("policies", f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError("policies", f"{path}: not UTF-8") from error
    except InvalidInputError as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError("policies", f"{path}: {error}") from None


def read_policies(text: str) -> PolicyBook:
    """The policies that ``text`` gives. Raises InvalidInputError with the path of what is wrong."""
    value = _mapping("the file", _parse(text), {"policies", "default", "callers"})
    entries = {}
    for name, given in _mapping("policies", value.get("policies", {})).items():
        check_name(f"policies.{name[:64]}", name)
        entries[name] = _entry(f"policies.{name}", given)
    callers = _mapping("callers", value.get("callers", {}))
    named: dict[str, Any] = {"default": _text("default", value["default"])} if "default" in value else {}
    return PolicyBook(
        resolve(entries),
        callers={caller: _text(f"callers.{caller}", name) for caller, name in callers.items()},
        **named,
    )


def check_policies(book: PolicyBook, check: Callable[[Policy], object]) -> None:
    """Have ``check`` (a guard model's) look at every policy; raises SettingsError naming the first that it refuses."""
    for name, policy in book.policies.items():
        try:
            check(policy)
        except (InvalidInputError, UnsupportedError) as error:
            raise SettingsError("policies", f"policies.{name}: {str(error).removeprefix('policy.')}") from None


def _entry(where: str, value: Any) -> PolicyEntry:
    given = _mapping(where, value, _FIELDS)
    extends = _text(f"{where}.extends", given["extends"]) if "extends" in given else None

    def field(name: str, read: Callable[[str, Any], T]) -> T | None:
        return read(f"{where}.{name}", given[name]) if name in given else None

    changes = PolicyChanges(
        threshold=field("threshold", _number),
        category_thresholds=field("category_thresholds", _thresholds),
        excluded_categories=field("excluded_categories", _codes),
        custom_categories=field("custom_categories", _custom_categories),
        action=field("action", _action),
        deny=field("deny", _phrases),
        allow=field("allow", _phrases),
    )
    return PolicyEntry(changes, extends)


def _thresholds(where: str, value: Any) -> Mapping[str, float]:
    return {_code(where, code): _number(f"{where}.{code}", number) for code, number in _mapping(where, value).items()}


def _codes(where: str, value: Any) -> frozenset[str]:
    return frozenset(_code(f"{where}[{index}]", code) for index, code in enumerate(_list(where, value)))


def _custom_categories(where: str, value: Any) -> tuple[CustomCategory, ...]:
    return tuple(_custom_category(f"{where}[{index}]", item) for index, item in enumerate(_list(where, value)))


def _custom_category(where: str, value: Any) -> CustomCategory:
    texts = {name: _text(f"{where}.{name}", text) for name, text in _mapping(where, value, _CATEGORY_FIELDS).items()}
    for required in ("code", "name"):
        if required not in texts:
            raise InvalidInputError(f"{where}.{required}", "is required")
    return _located(where, lambda: CustomCategory(**texts))


_CATEGORY_FIELDS = {"code", "name", "description"}


def _action(where: str, value: Any) -> PolicyAction:
    if value not in [action.value for action in PolicyAction]:
        raise InvalidInputError(where, "expected block or shadow")
    return PolicyAction(value)


def _phrases(where: str, value: Any) -> PhraseList:
    found = tuple(_phrase(f"{where}[{index}]", item) for index, item in enumerate(_list(where, value)))
    try:
        return PhraseList(found)
    except InvalidInputError as error:
        raise InvalidInputError(where, error.problem) from None


def _phrase(where: str, value: Any) -> Phrase:
    if isinstance(value, str):
        return _located(where, lambda: Phrase(value))
    texts = {name: _text(f"{where}.{name}", text) for name, text in _mapping(where, value, {"phrase", "name"}).items()}
    if "phrase" not in texts:
        raise InvalidInputError(f"{where}.phrase", "is required")
    return _located(where, lambda: Phrase(texts["phrase"], texts.get("name", "")))


def _located(where: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}.{error.field.rpartition('.')[2]}", error.problem) from None


def _mapping(where: str, value: Any, known: set[str] | None = None) -> dict[str, Any]:
    """``value`` as a mapping from text. ``known``: the keys that it may have."""
    if not isinstance(value, dict):
        raise InvalidInputError(where, "expected a mapping")
    prefix = "" if where == "the file" else f"{where}."
    for key in value:
        if not isinstance(key, str):
            raise InvalidInputError(f"{prefix}{key}", "expected text as the key; quote it")
        if known is not None and key not in known:
            raise InvalidInputError(f"{prefix}{key}", f"is unknown; there are: {', '.join(sorted(known))}")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInputError(where, "expected a list")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(where, "expected text; quote it")
    return value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(where, "expected a number")
    return float(value)


def _code(where: str, value: Any) -> str:
    if not isinstance(value, str) or not is_code(value):
        raise InvalidInputError(where, "expected a category code, S1 to S99")
    return value


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last, and anchors, which may explode."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise InvalidInputError("the file", "YAML aliases are not read; use extends")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                place = _place(node.value[position][0].start_mark)
                raise InvalidInputError(str(key)[:64], f"is given twice ({place})")
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise InvalidInputError("the file", f"not YAML ({_place(error.problem_mark)})") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a character that YAML does not allow; a date like 2024-99-99
        raise InvalidInputError("the file", "not YAML") from None
    return {} if value is None else value


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}" if mark is not None else "somewhere"
