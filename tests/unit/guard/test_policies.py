from __future__ import annotations

import pytest

from guard.errors import InvalidInputError
from guard.phrases import Phrase, PhraseList
from guard.policies import NamedPolicy, PolicyBook, PolicyEntry, resolve
from guard.policy import Policy, PolicyAction, PolicyChanges

STRICT, SHADOW = Policy(threshold=0.2), Policy(action=PolicyAction.SHADOW)
BOOK = PolicyBook({"default": Policy(), "strict": STRICT, "shadow": SHADOW}, "strict", {"shop": "shadow"})


def test_a_caller_gets_its_own_default_and_everybody_else_the_servers() -> None:
    assert BOOK.policy_for(None) == NamedPolicy("strict", STRICT)
    assert BOOK.policy_for("shop") == NamedPolicy("shadow", SHADOW)
    assert BOOK.policy_for("somebody") == NamedPolicy("strict", STRICT)


def test_a_request_may_name_a_policy() -> None:
    assert BOOK.named("default") == NamedPolicy("default", Policy())
    assert BOOK.named("") == BOOK.policy_for(None)
    assert BOOK.named("", "shop") == BOOK.policy_for("shop")
    with pytest.raises(InvalidInputError, match=r"^policy_name: there is no policy"):
        BOOK.named("Strict")


def test_there_is_a_default_without_any_file() -> None:
    assert PolicyBook().policy_for(None) == NamedPolicy("default", Policy())


def test_defaults_must_name_policies() -> None:
    with pytest.raises(InvalidInputError, match=r"^default: "):
        PolicyBook(default="other")
    with pytest.raises(InvalidInputError, match=r"^callers\.shop: "):
        PolicyBook(callers={"shop": "other"})
    with pytest.raises(InvalidInputError, match=r"^policies\.a b: "):
        PolicyBook({"default": Policy(), "a b": Policy()})


def test_a_policy_has_the_fields_of_the_one_it_extends_unless_it_gives_its_own() -> None:
    deny = PhraseList((Phrase("x"),))
    found = resolve(
        {
            "last": PolicyEntry(PolicyChanges(excluded_categories=frozenset()), extends="middle"),
            "middle": PolicyEntry(PolicyChanges(threshold=0.3, action=PolicyAction.SHADOW), extends="first"),
            "first": PolicyEntry(PolicyChanges(threshold=0.9, excluded_categories=frozenset({"S1"}), deny=deny)),
            "plain": PolicyEntry(PolicyChanges(), extends="default"),
        }
    )
    assert found["first"] == Policy(0.9, excluded_categories=frozenset({"S1"}), deny=deny)
    assert found["middle"] == Policy(0.3, excluded_categories=frozenset({"S1"}), deny=deny, action=PolicyAction.SHADOW)
    assert found["last"] == Policy(0.3, deny=deny, action=PolicyAction.SHADOW)
    assert found["plain"] == found["default"] == Policy()


@pytest.mark.parametrize(
    ("extends", "problem"),
    [({"a": "b", "b": "a"}, "circle"), ({"a": "a"}, "circle"), ({"a": "c"}, "no policy")],
)
def test_what_a_policy_extends_must_lead_somewhere(extends: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        resolve({name: PolicyEntry(PolicyChanges(), base) for name, base in extends.items()})


def test_errors_name_the_policy_and_its_field() -> None:
    with pytest.raises(InvalidInputError, match=r"^policies\.a\.threshold: "):
        resolve({"a": PolicyEntry(PolicyChanges(threshold=2.0))})


def test_digests_tell_policies_apart() -> None:
    same = [Policy(0.3, {"S2": 0.1, "S1": 0.2}), Policy(0.3, {"S1": 0.2, "S2": 0.1})]
    other = [
        Policy(),
        STRICT,
        SHADOW,
        Policy(excluded_categories=frozenset({"S1"})),
        Policy(deny=PhraseList((Phrase("x"),))),
        Policy(allow=PhraseList((Phrase("x"),))),
        Policy(deny=PhraseList((Phrase("x", "n"),))),
    ]
    assert same[0].digest == same[1].digest
    assert len({policy.digest for policy in [*same, *other]}) == 1 + len(other)
