"""When the screen's answer may stand: only for what its thresholds were chosen for, and never against a rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.cascade import ScreenRules
from guard.classifier import ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.normalize import ViewKind
from guard.phrases import Phrase, PhraseList
from guard.policy import CustomCategory, Policy
from guard.verdict import DecidedBy, Judgement, Verdict, Window, decide

RULES = ScreenRules(0.1, 0.9)
PROBABILITIES = st.floats(0.0, 1.0)
THRESHOLDS = st.floats(0.01, 1.0)
CODES = ("S1", "S2", "S10")


def task(policy: Policy | None = None) -> ClassifyTask:
    return ClassifyTask(Conversation((Message(Role.USER, "Hello."),)), Target.PROMPT, policy or Policy())


def judgement(score: float, policy: Policy | None = None, given_unsafe: tuple[float, ...] = (0.2, 0.8)) -> Judgement:
    verdict, remaining, categories = decide(score, dict(zip(CODES, given_unsafe, strict=False)), policy or Policy())
    return Judgement(
        verdict=verdict,
        unsafe_score=remaining,
        categories=categories,
        mode="one_pass",
        forged_delimiters=False,
        view=ViewKind.RAW,
        window=Window(0, 6, 0, 1),
        context_left_out=0,
        passes=1,
        prompt_tokens=10,
        cached_tokens=0,
        completion_tokens=0,
        queue_s=0.0,
        model_s=0.0,
    )


def test_only_clear_scores_stand() -> None:
    stands = {score: RULES.stands(judgement(score), Policy()) for score in (0.0, 0.099, 0.1, 0.3, 0.5, 0.9, 0.901, 1.0)}
    assert [score for score, clear in stands.items() if clear] == [0.0, 0.099, 0.901, 1.0]


def test_by_default_the_screen_never_says_unsafe() -> None:
    rules = ScreenRules(0.1)
    assert rules.stands(judgement(0.01), Policy())
    assert not rules.stands(judgement(1.0), Policy())
    assert not rules.apply_to(task(Policy(threshold=0.4)))


@pytest.mark.parametrize(
    "changes",
    [
        {"forged_delimiters": True},
        {"context_left_out": 1},
        {"matched_entry": "0", "decided_by": DecidedBy.ALLOW_LIST},
        {"verdict": Verdict.UNSAFE},
    ],
)
def test_what_is_odd_about_a_judgement_goes_on(changes: dict[str, object]) -> None:
    safe = judgement(0.01)
    assert RULES.stands(safe, Policy())
    assert not RULES.stands(replace(safe, **changes), Policy())  # type: ignore[arg-type]


def test_questions_of_a_policys_own_go_on() -> None:
    assert RULES.apply_to(task())
    assert RULES.apply_to(task(Policy(deny=PhraseList((Phrase("zeta"),)))))
    assert not RULES.apply_to(task(Policy(excluded_categories=frozenset({"S6"}))))
    assert not RULES.apply_to(task(Policy(custom_categories=(CustomCategory("S1", "Spoilers"),))))
    assert not RULES.apply_to(replace(task(), mode="exact"))


def test_stricter_policies_do_without_its_safe_and_looser_ones_without_its_unsafe() -> None:
    strict, loose = Policy(category_thresholds={"S1": 0.3}), Policy(threshold=0.7)
    assert (RULES.stands(judgement(0.01), strict), RULES.stands(judgement(0.99), strict)) == (False, True)
    assert (RULES.stands(judgement(0.01), loose), RULES.stands(judgement(0.99), loose)) == (True, False)
    mixed = Policy(threshold=0.7, category_thresholds={"S1": 0.3})
    assert not RULES.apply_to(task(mixed))


@pytest.mark.parametrize("numbers", [(-0.1, 0.9, 0.5), (0.6, 0.9, 0.5), (0.1, 0.4, 0.5), (0.1, 1.1, 0.5), (math.nan,)])
def test_thresholds_are_in_order(numbers: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= safe_below"):
        ScreenRules(*numbers)


@given(
    screen=PROBABILITIES,
    large=PROBABILITIES,
    share=PROBABILITIES,
    threshold=THRESHOLDS,
    own=st.dictionaries(st.sampled_from(CODES[:2]), THRESHOLDS),
)
def test_a_policy_flags_no_more_than_the_one_the_thresholds_were_chosen_for(
    screen: float, large: float, share: float, threshold: float, own: dict[str, float]
) -> None:
    """Where SAFE stands though the large guard would flag the text under the policy, it would flag it under the
    policy of the choice, too: such a row was counted when the threshold was chosen. The same for UNSAFE.
    """
    policy, chosen = Policy(threshold=threshold, category_thresholds=own), Policy(threshold=RULES.threshold)
    answer = judgement(screen, policy)
    if not (RULES.apply_to(task(policy)) and RULES.stands(answer, policy)):
        return
    under_policy = judgement(large, policy, (share, 1 - share)).verdict
    under_chosen = judgement(large, chosen, (share, 1 - share)).verdict
    if answer.verdict is not under_policy:
        assert under_chosen is under_policy
