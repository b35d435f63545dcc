from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import ModelOutputError
from guard.policy import CustomCategory, Policy
from guard.verdict import Verdict, category_probabilities, decide, next_token, unsafe_probability

ROWS = {10: 0, 20: 1, 30: 2}
UNIT = st.floats(0, 1)


def test_unsafe_probability_is_the_softmax_of_two_tokens() -> None:
    logits = np.array([1.0, 3.0, 99.0], np.float32)
    assert unsafe_probability(logits, ROWS, safe=10, unsafe=20) == pytest.approx(1 / (1 + math.exp(-2)))


def test_category_probabilities_ignore_other_tokens() -> None:
    shares = category_probabilities(np.array([0.0, math.log(3), 50.0], np.float32), ROWS, {"S1": 10, "S2": 20})
    assert shares == pytest.approx({"S1": 0.25, "S2": 0.75})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    """Failure test 16: also when only a token that is not read is broken."""
    logits = np.array([1.0, 2.0, bad], np.float32)
    for read in (
        lambda: unsafe_probability(logits, ROWS, 10, 20),
        lambda: category_probabilities(logits, ROWS, {"S1": 10}),
        lambda: next_token(logits, ROWS),
    ):
        with pytest.raises(ModelOutputError):
            read()


def test_threshold_decides() -> None:
    shares = {"S1": 0.9, "S2": 0.1}
    assert decide(0.5, shares, Policy())[0] is Verdict.UNSAFE
    assert decide(0.49, shares, Policy())[0] is Verdict.SAFE
    assert decide(0.3, shares, Policy(threshold=0.3))[0] is Verdict.UNSAFE


def test_leading_categorys_own_threshold_applies() -> None:
    shares = {"S1": 0.9, "S6": 0.1}
    assert decide(0.8, shares, Policy(category_thresholds={"S1": 0.9}))[0] is Verdict.SAFE
    verdict, _, categories = decide(0.8, shares, Policy(category_thresholds={"S1": 0.9, "S6": 0.05}))
    assert verdict is Verdict.UNSAFE
    assert [(category.code, category.flagged) for category in categories] == [("S1", False), ("S6", True)]


def test_split_mass_is_still_unsafe() -> None:
    verdict, score, categories = decide(0.9, {"S1": 0.4, "S2": 0.35, "S3": 0.25}, Policy())
    assert (verdict, score) == (Verdict.UNSAFE, 0.9)
    assert [category.code for category in categories if category.flagged] == ["S1"]


def test_excluded_category_takes_its_share_with_it() -> None:
    policy = Policy(excluded_categories=frozenset({"S1"}))
    verdict, score, categories = decide(0.9, {"S1": 0.8, "S2": 0.2}, policy)
    assert verdict is Verdict.SAFE
    assert score == pytest.approx(0.18)
    assert [category.code for category in categories] == ["S2"]


def test_named_categories_are_flagged_with_the_custom_name() -> None:
    policy = Policy(custom_categories=(CustomCategory("S2", "House Rules"),))
    _, _, categories = decide(0.9, {"S1": 0.8, "S2": 0.2}, policy, named=("S1", "S2"))
    assert [(category.name, category.flagged) for category in categories] == [
        ("Violent Crimes", True),
        ("House Rules", True),
    ]


@given(unsafe=UNIT, weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=13), threshold=st.floats(0.01, 1))
def test_unsafe_means_that_something_is_flagged(unsafe: float, weights: list[float], threshold: float) -> None:
    shares = {f"S{index + 1}": weight / sum(weights) for index, weight in enumerate(weights)}
    verdict, score, categories = decide(unsafe, shares, Policy(threshold=threshold))
    assert (verdict is Verdict.UNSAFE) == any(category.flagged for category in categories) == (unsafe >= threshold)
    assert score == unsafe
    assert sum(category.score for category in categories) == pytest.approx(unsafe, abs=1e-9)
