"""How one route of Envoy is moderated. Envoy's configuration says it in gRPC metadata, which no HTTP client reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from guard.errors import InvalidInputError
from guard.policies import NamedPolicy, PolicyBook
from guard.policy import PolicyAction

POLICY_KEY = "guardlet-policy"
ACTION_KEY = "guardlet-action"
ON_ERROR_KEY = "guardlet-on-error"
TURNS_KEY = "guardlet-turns"
_CHOICES: Mapping[str, tuple[str, ...]] = {
    ACTION_KEY: ("block", "shadow"),
    ON_ERROR_KEY: ("block", "allow"),
    TURNS_KEY: ("all", "last"),
}


@dataclass(frozen=True)
class Route:
    """``applied``: the policy. ``fails_open``: what the guard could not judge goes on. ``all_turns``: every turn of a
    request is judged, not only the last one. In shadow mode nothing is ever held up, so it always fails open.
    """

    applied: NamedPolicy
    fails_open: bool = False
    all_turns: bool = True

    @property
    def shadow(self) -> bool:
        """Whether the policy reports and never blocks."""
        return self.applied.policy.action is PolicyAction.SHADOW


def read_route(metadata: Iterable[tuple[str, str | bytes]], book: PolicyBook, caller: str | None) -> Route:
    """The route that the metadata of a call describes. Raises InvalidInputError naming the key that is wrong."""
    found = {key: value if isinstance(value, str) else "" for key, value in metadata if key.startswith("guardlet-")}
    for key in found:
        if key != POLICY_KEY and key not in _CHOICES:
            raise InvalidInputError("metadata", f"an unknown key; known are {POLICY_KEY}, {', '.join(_CHOICES)}")
    chosen = {}
    for key, choices in _CHOICES.items():
        chosen[key] = found.get(key, choices[0])
        if chosen[key] not in choices:
            raise InvalidInputError(f"metadata.{key}", f"expected {' or '.join(choices)}")
    applied = book.named(found.get(POLICY_KEY, ""), caller)
    if chosen[ACTION_KEY] == "shadow":
        applied = NamedPolicy(applied.name, replace(applied.policy, action=PolicyAction.SHADOW))
    shadow = applied.policy.action is PolicyAction.SHADOW
    return Route(applied, shadow or chosen[ON_ERROR_KEY] == "allow", chosen[TURNS_KEY] == "all")
