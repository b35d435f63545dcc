"""What a caller wants flagged: thresholds, exclusions, categories and phrases of their own; and what to do then."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any

from guard.errors import InvalidInputError
from guard.phrases import PhraseList

_CODE = re.compile(r"S[1-9][0-9]?")
#: A custom category becomes part of every prompt, so its text is bounded.
MAX_CUSTOM_CATEGORIES = 16
MAX_NAME_CHARACTERS = 64
MAX_DESCRIPTION_CHARACTERS = 512
_EMPTY: Mapping[str, float] = MappingProxyType({})


class PolicyAction(Enum):
    """What callers should do about an unsafe text: block it, or (shadow mode) note it and let it through."""

    BLOCK = "block"
    SHADOW = "shadow"


@dataclass(frozen=True)
class CustomCategory:
    """A caller's own hazard; a ``code`` the model already has replaces that category's text."""

    code: str
    name: str
    description: str = ""

    def __post_init__(self) -> None:
        where = "policy.custom_categories"
        if not is_code(self.code):
            raise InvalidInputError(f"{where}.code", "expected S1 to S99")
        for name, text, limit in (
            ("name", self.name, MAX_NAME_CHARACTERS),
            ("description", self.description, MAX_DESCRIPTION_CHARACTERS),
        ):
            if len(text) > limit:
                raise InvalidInputError(f"{where}.{name}", f"{len(text)} characters, the limit is {limit}")
            if any(ord(character) < 32 for character in text) or "<" in text or ">" in text:
                raise InvalidInputError(f"{where}.{name}", "control characters, '<' and '>' are not allowed")
        if not self.name.strip():
            raise InvalidInputError(f"{where}.name", "is empty")


@dataclass(frozen=True)
class Policy:
    """Thresholds in 0..1 on the unsafe score; see ``guard.verdict.judge`` for how they decide.

    ``excluded_categories`` are left out of the prompt (when the model reads its categories from there) and of the
    answer. A text that contains a phrase of ``deny`` is unsafe and one that is, as a whole, a phrase of ``allow`` is
    safe, both without asking the model; ``deny`` goes first. Raises InvalidInputError naming the field.
    """

    threshold: float = 0.5
    category_thresholds: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    excluded_categories: frozenset[str] = frozenset()
    custom_categories: tuple[CustomCategory, ...] = ()
    action: PolicyAction = PolicyAction.BLOCK
    deny: PhraseList = field(default_factory=PhraseList)
    allow: PhraseList = field(default_factory=PhraseList)

    def __post_init__(self) -> None:
        _check_threshold("policy.threshold", self.threshold)
        for code, threshold in self.category_thresholds.items():
            _check_threshold(f"policy.category_thresholds[{code!r}]", threshold)
        if len(self.custom_categories) > MAX_CUSTOM_CATEGORIES:
            raise InvalidInputError(
                "policy.custom_categories", f"{len(self.custom_categories)} given, the limit is {MAX_CUSTOM_CATEGORIES}"
            )
        codes = [category.code for category in self.custom_categories]
        if len(set(codes)) != len(codes):
            raise InvalidInputError("policy.custom_categories", "a code is given twice")

    def __reduce__(self) -> tuple[type[Policy], tuple[Any, ...]]:
        """For other processes: a mapping that cannot be changed cannot be pickled either."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Policy, tuple({**values, "category_thresholds": dict(self.category_thresholds)}.values())

    def threshold_for(self, code: str) -> float:
        """The threshold that applies to ``code``."""
        return self.category_thresholds.get(code, self.threshold)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything the policy says, 64 hexadecimal digits: equal policies, equal digests."""
        value = {each.name: getattr(self, each.name) for each in fields(self)} | {
            "category_thresholds": dict(self.category_thresholds),
            "excluded_categories": sorted(self.excluded_categories),
            "custom_categories": [asdict(category) for category in self.custom_categories],
            "action": self.action.value,
            "deny": asdict(self.deny),
            "allow": asdict(self.allow),
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PolicyChanges:
    """The fields of a policy that differ from another's; None leaves a field as it is, a value replaces all of it."""

    threshold: float | None = None
    category_thresholds: Mapping[str, float] | None = None
    excluded_categories: frozenset[str] | None = None
    custom_categories: tuple[CustomCategory, ...] | None = None
    action: PolicyAction | None = None
    deny: PhraseList | None = None
    allow: PhraseList | None = None

    def apply(self, base: Policy) -> Policy:
        """``base`` with these changes; raises what Policy raises."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {name: value for name, value in values.items() if value is not None}
        return replace(base, **given) if given else base


def is_code(text: str) -> bool:
    """Whether ``text`` can be a category's code: S1 to S99."""
    return _CODE.fullmatch(text) is not None


def _check_threshold(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:  # also false for NaN
        raise InvalidInputError(name, "expected a number above 0 and at most 1")
