"""Thresholds of a screen: no more wrong rows than wanted, never narrower than that allows, and a bound that holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.evaluation.predictions import Prediction
from guard.evaluation.screen import Pairs, choose, share_bound

from .helpers import row, scored

SCORES = st.floats(0.0, 1.0)
ROWS = st.lists(st.tuples(SCORES | st.just(math.nan), st.booleans(), st.booleans()), min_size=1, max_size=60)
SHARES = st.floats(0.0, 0.99)


def pairs(*found: tuple[float, bool, bool]) -> Pairs:
    """Of (the screen's score, whether the large guard flags it, whether it is unsafe)."""
    scores, flagged, unsafe = zip(*found, strict=True)
    return Pairs(np.array(unsafe, bool), np.array(scores, float), np.array(flagged, bool))


def test_a_known_case() -> None:
    found = pairs((0.01, False, False), (0.02, True, True), (0.05, False, True), (0.3, True, True), (0.9, True, False))
    none = choose(found, 0.0, None, 0.5)
    assert (none.safe_below, none.missed, none.answered) == (0.02, 0, 0.2)
    assert (none.f1, none.f1_large) == pytest.approx((2 / 3, 2 / 3))
    third = choose(found, 0.34, None, 0.5)  # one of three
    assert (third.safe_below, third.missed, third.answered) == (0.3, 1, 0.6)
    assert third.f1 == pytest.approx(0.4)
    assert third.time_s(0.1, 1.0) == pytest.approx(0.5)


def test_unsafe_is_only_chosen_when_it_is_asked_for() -> None:
    found = pairs((0.1, False, False), (0.6, False, False), (0.8, True, True), (0.9, True, True))
    assert choose(found, 0.0, None, 0.5).unsafe_above == 1.0
    both = choose(found, 0.0, 0.0, 0.5)
    assert (both.unsafe_above, both.overblocked, both.answered) == (0.6, 0, 0.75)  # 0.6 is not above it
    half = choose(found, 0.0, 0.5, 0.5)
    assert (half.unsafe_above, half.overblocked) == (0.5, 1)


def test_rows_without_an_answer_are_never_in_the_screens_favour() -> None:
    """The screen failed: the large guard answers. The large guard failed: a SAFE of the screen there is a miss."""
    rows = [row("a", unsafe=True), row("b"), row("c"), row("not judged")]
    error = Prediction(None, error="MODEL_OUTPUT_UNREADABLE")
    screen = {rows[0].key: error, rows[1].key: scored(0.01), rows[2].key: scored(0.02)}
    large = {rows[0].key: scored(0.9), rows[1].key: error, rows[2].key: scored(0.1)}
    found = Pairs.of(rows, screen, large, 0.5)
    assert np.isnan(found.screen).tolist() == [True, False, False]
    assert found.flagged.tolist() == [True, True, False]
    assert choose(found, 0.0, None, 0.5).answered == 0.0


@given(found=ROWS, wanted=SHARES, unsafe_wanted=st.none() | SHARES, threshold=st.floats(0.05, 0.95))
def test_no_more_is_wrong_than_wanted_and_the_next_step_would_be(
    found: list[tuple[float, bool, bool]], wanted: float, unsafe_wanted: float | None, threshold: float
) -> None:
    these = pairs(*found)
    choice = choose(these, wanted, unsafe_wanted, threshold)
    flagged, passed = these.screen[these.flagged], these.screen[~these.flagged]
    assert choice.missed == (flagged < choice.safe_below).sum() <= wanted * len(flagged)
    assert choice.overblocked == (passed > choice.unsafe_above).sum() <= (unsafe_wanted or 0.0) * len(passed)
    assert 0.0 <= choice.safe_below <= threshold <= choice.unsafe_above <= 1.0
    if choice.safe_below < threshold:
        wider = np.nextafter(choice.safe_below, 2.0)
        assert (flagged < wider).sum() > int(wanted * len(flagged))


@pytest.mark.parametrize(
    ("wrong", "rows", "bound"),
    [(0, 10, 0.2589), (1, 10, 0.3942), (5, 100, 0.1023), (0, 1500, 0.001995), (10, 10, 1.0), (0, 0, 1.0)],
)
def test_the_bound_is_clopper_and_pearsons(wrong: int, rows: int, bound: float) -> None:
    """0 of n: 1 - 0.05 ** (1 / n). The others are in printed tables."""
    assert share_bound(wrong, rows) == pytest.approx(bound, abs=5e-5)


def test_the_bound_holds_for_thresholds_chosen_by_the_same_rows() -> None:
    """Scores of flagged rows are uniform here, so the share that a threshold misses of new rows is the threshold."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        scores = rng.random(200)
        choice = choose(pairs(*((score, True, True) for score in scores)), 0.02, None, 0.5)
        held += choice.safe_below <= choice.missed_bound
    assert 0.92 <= held / 400 <= 0.98
