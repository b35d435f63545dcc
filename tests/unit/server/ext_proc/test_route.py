"""What Envoy's configuration says about a route."""

from __future__ import annotations

import pytest

from guard.errors import InvalidInputError
from guard.policies import PolicyBook
from guard.policy import Policy, PolicyAction
from server.ext_proc.route import Route, read_route

BOOK = PolicyBook({"default": Policy(), "strict": Policy(threshold=0.1)}, callers={"edge": "strict"})


def route(caller: str | None = None, **metadata: str) -> Route:
    """The route of ``metadata``, keys without their prefix, among the metadata that gRPC adds."""
    given = [(f"guardlet-{key.replace('_', '-')}", value) for key, value in metadata.items()]
    return read_route([("user-agent", "envoy"), ("x-guardlet-action", "shadow"), *given], BOOK, caller)


def test_the_default_blocks_and_fails_closed() -> None:
    found = route()
    assert (found.applied.name, found.shadow, found.fails_open, found.all_turns) == ("default", False, False, True)


def test_what_is_said_is_taken() -> None:
    assert route(policy="strict").applied.policy.threshold == 0.1
    assert route(on_error="allow").fails_open
    assert not route(turns="last").all_turns
    shadow = route(policy="strict", action="shadow")
    assert shadow.applied.policy == Policy(threshold=0.1, action=PolicyAction.SHADOW)
    assert shadow.shadow and shadow.fails_open


def test_a_caller_has_its_own_default() -> None:
    assert route(caller="edge").applied.name == "strict"


@pytest.mark.parametrize(
    "metadata", [{"policy": "missing"}, {"action": "Shadow"}, {"on_error": ""}, {"turns": "none"}, {"polcy": "strict"}]
)
def test_what_is_wrong_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError):
        route(**metadata)
