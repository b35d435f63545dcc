"""Policies by name: which there are, which one extends which, and which applies to whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from guard.errors import InvalidInputError
from guard.policy import Policy, PolicyChanges

#: The policy of requests that name none, unless a file says otherwise. It is there without any file.
DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BUILT_IN: Mapping[str, Policy] = MappingProxyType({DEFAULT_NAME: Policy()})


@dataclass(frozen=True)
class NamedPolicy:
    """A policy and its name."""

    name: str
    policy: Policy


@dataclass(frozen=True)
class PolicyEntry:
    """How a file gives a policy: its own fields, over those of the policy it extends (None: of ``Policy()``)."""

    changes: PolicyChanges
    extends: str | None = None


@dataclass(frozen=True)
class PolicyBook:
    """All policies of a server. ``callers`` maps a caller's name to the name of its default policy.

    Raises InvalidInputError naming the entry.
    """

    policies: Mapping[str, Policy] = field(default_factory=lambda: _BUILT_IN)
    default: str = DEFAULT_NAME
    callers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name in self.policies:
            check_name(f"policies.{name[:64]}", name)
        for where, name in (
            ("default", self.default),
            *((f"callers.{who}", name) for who, name in self.callers.items()),
        ):
            if name not in self.policies:
                raise InvalidInputError(where, "there is no policy of that name")

    def policy_for(self, caller: str | None) -> NamedPolicy:
        """The default of ``caller``; of everybody who has none of their own, when it is None or unknown."""
        name = self.default if caller is None else self.callers.get(caller, self.default)
        return NamedPolicy(name, self.policies[name])

    def named(self, name: str, caller: str | None = None) -> NamedPolicy:
        """The policy ``name``, or the default of ``caller`` for "". Raises InvalidInputError."""
        if not name:
            return self.policy_for(caller)
        policy = self.policies.get(name)
        if policy is None:
            raise InvalidInputError("policy_name", "there is no policy of that name; ListPolicies shows them")
        return NamedPolicy(name, policy)


def resolve(entries: Mapping[str, PolicyEntry]) -> dict[str, Policy]:
    """The policies that ``entries`` describe, and the built-in default unless they have one of that name.

    Raises InvalidInputError naming the entry that extends what is not there, or itself in a circle, or whose fields do
    not make a policy.
    """
    found: dict[str, Policy] = {} if DEFAULT_NAME in entries else dict(_BUILT_IN)

    def policy(name: str, below: tuple[str, ...]) -> Policy:
        if name in found:
            return found[name]
        entry, where = entries[name], f"policies.{name}"
        base = Policy()
        if entry.extends is not None:
            if entry.extends in (*below, name):
                raise InvalidInputError(f"{where}.extends", "goes in a circle")
            if entry.extends not in entries and entry.extends not in found:
                raise InvalidInputError(f"{where}.extends", "there is no policy of that name")
            base = policy(entry.extends, (*below, name))
        try:
            found[name] = entry.changes.apply(base)
        except InvalidInputError as error:
            raise InvalidInputError(where + error.field.removeprefix("policy"), error.problem) from None
        return found[name]

    for name in entries:
        policy(name, ())
    return found


def check_name(where: str, name: str) -> None:
    """Raises InvalidInputError for ``where`` unless ``name`` can be a policy's: it is echoed and logged."""
    if not _NAME.fullmatch(name):
        raise InvalidInputError(where, "expected a name of 1 to 64 letters, digits and ._-, a letter or digit first")
