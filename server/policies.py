"""The YAML file of policies, read strictly: what is not understood is refused by its path.

policies.schema.json, beside this module, says the same to editors and other tools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from guard.errors import InvalidInputError, UnsupportedError
from guard.phrases import Phrase, PhraseList
from guard.policies import PolicyBook, PolicyEntry, check_name, resolve
from guard.policy import CustomCategory, Policy, PolicyAction, PolicyChanges, is_code
from server.errors import SettingsError
from server.strict_yaml import load_file, mapping, number, parse, sequence, text

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
    return PolicyBook() if path is None else load_file("policies", path, read_policies)


def read_policies(content: str) -> PolicyBook:
    """The policies that ``content`` gives. Raises InvalidInputError with the path of what is wrong."""
    value = mapping("the file", parse(content), {"policies", "default", "callers"})
    entries = {}
    for name, given in mapping("policies", value.get("policies", {})).items():
        check_name(f"policies.{name[:64]}", name)
        entries[name] = _entry(f"policies.{name}", given)
    callers = mapping("callers", value.get("callers", {}))
    named: dict[str, Any] = {"default": text("default", value["default"])} if "default" in value else {}
    return PolicyBook(
        resolve(entries),
        callers={caller: text(f"callers.{caller}", name) for caller, name in callers.items()},
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
    given = mapping(where, value, _FIELDS)
    extends = text(f"{where}.extends", given["extends"]) if "extends" in given else None

    def field(name: str, read: Callable[[str, Any], T]) -> T | None:
        return read(f"{where}.{name}", given[name]) if name in given else None

    changes = PolicyChanges(
        threshold=field("threshold", number),
        category_thresholds=field("category_thresholds", _thresholds),
        excluded_categories=field("excluded_categories", _codes),
        custom_categories=field("custom_categories", _custom_categories),
        action=field("action", _action),
        deny=field("deny", _phrases),
        allow=field("allow", _phrases),
    )
    return PolicyEntry(changes, extends)


def _thresholds(where: str, value: Any) -> Mapping[str, float]:
    return {_code(where, code): number(f"{where}.{code}", given) for code, given in mapping(where, value).items()}


def _codes(where: str, value: Any) -> frozenset[str]:
    return frozenset(_code(f"{where}[{index}]", code) for index, code in enumerate(sequence(where, value)))


def _custom_categories(where: str, value: Any) -> tuple[CustomCategory, ...]:
    return tuple(_custom_category(f"{where}[{index}]", item) for index, item in enumerate(sequence(where, value)))


def _custom_category(where: str, value: Any) -> CustomCategory:
    texts = {name: text(f"{where}.{name}", given) for name, given in mapping(where, value, _CATEGORY_FIELDS).items()}
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
    found = tuple(_phrase(f"{where}[{index}]", item) for index, item in enumerate(sequence(where, value)))
    try:
        return PhraseList(found)
    except InvalidInputError as error:
        raise InvalidInputError(where, error.problem) from None


def _phrase(where: str, value: Any) -> Phrase:
    if isinstance(value, str):
        return _located(where, lambda: Phrase(value))
    texts = {name: text(f"{where}.{name}", given) for name, given in mapping(where, value, {"phrase", "name"}).items()}
    if "phrase" not in texts:
        raise InvalidInputError(f"{where}.phrase", "is required")
    return _located(where, lambda: Phrase(texts["phrase"], texts.get("name", "")))


def _located(where: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}.{error.field.rpartition('.')[2]}", error.problem) from None


def _code(where: str, value: Any) -> str:
    if not isinstance(value, str) or not is_code(value):
        raise InvalidInputError(where, "expected a category code, S1 to S99")
    return value
