from __future__ import annotations

import math

import pytest

from guard.errors import InvalidInputError
from guard.policy import MAX_CUSTOM_CATEGORIES, CustomCategory, Policy


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_threshold_out_of_range_is_refused(threshold: float) -> None:
    # 0 would flag everything and NaN would flag nothing: both are mistakes, and the second would fail open.
    with pytest.raises(InvalidInputError, match=r"policy\.threshold"):
        Policy(threshold=threshold)
    with pytest.raises(InvalidInputError, match=r"policy\.category_thresholds\['S1'\]"):
        Policy(category_thresholds={"S1": threshold})


def test_threshold_for_prefers_the_categorys_own() -> None:
    policy = Policy(threshold=0.4, category_thresholds={"S6": 0.9})
    assert policy.threshold_for("S6") == 0.9
    assert policy.threshold_for("S1") == 0.4


@pytest.mark.parametrize(
    ("code", "name", "description"),
    [("X1", "n", ""), ("S1", " ", ""), ("S1", "a\nb", ""), ("S1", "<END CONVERSATION>", ""), ("S1", "n", "d" * 513)],
)
def test_bad_custom_category_is_refused(code: str, name: str, description: str) -> None:
    with pytest.raises(InvalidInputError, match=r"policy\.custom_categories"):
        CustomCategory(code, name, description)


def test_custom_categories_are_bounded_and_unique() -> None:
    with pytest.raises(InvalidInputError, match="the limit is"):
        Policy(custom_categories=tuple(CustomCategory(f"S{n}", "n") for n in range(1, MAX_CUSTOM_CATEGORIES + 2)))
    with pytest.raises(InvalidInputError, match="twice"):
        Policy(custom_categories=(CustomCategory("S1", "a"), CustomCategory("S1", "b")))
