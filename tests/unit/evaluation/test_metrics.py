"""Every formula against a hand computation, or against its definition written out in plain Python."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.evaluation.metrics import (
    SHARES,
    Bools,
    Floats,
    best_f1,
    calibration,
    f1_change,
    figures,
    intervals,
    precision_recall,
    threshold_for_fpr,
)

# Few distinct scores, so that ties are common; all multiples of 1/8, so that sums are exact.
labelled = st.lists(st.tuples(st.booleans(), st.integers(0, 8).map(lambda step: step / 8)), min_size=1, max_size=40)
Rows = list[tuple[bool, float]]


def arrays(rows: Rows) -> tuple[Bools, Floats]:
    return np.array([unsafe for unsafe, _ in rows], bool), np.array([score for _, score in rows], float)


def test_figures_by_hand() -> None:
    unsafe, scores = arrays([(True, 0.9), (True, 0.5), (True, 0.2), (False, 0.7), (False, 0.1)])
    value = figures(unsafe, scores, 0.5)  # flagged: .9 .5 .7
    assert (value.true_positives, value.false_positives, value.false_negatives, value.true_negatives) == (2, 1, 1, 1)
    assert value.precision == value.recall == value.f1 == pytest.approx(2 / 3)
    assert value.false_positive_rate == 0.5
    assert value.accuracy == 0.6
    # Ranked: U S U U S. Precision at each unsafe row: 1, 2/3, 3/4, each with a third of the recall.
    assert value.auprc == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert value.auroc == pytest.approx(4 / 6)  # of 3 x 2 pairs, (.5, .7) and (.2, .7) are in the wrong order


def test_ties_count_half_in_auroc_and_together_in_auprc() -> None:
    unsafe, scores = arrays([(True, 0.5), (False, 0.5)])
    value = figures(unsafe, scores, 0.5)
    assert (value.auroc, value.auprc) == (0.5, 0.5)


@given(labelled)
def test_areas_are_their_definitions(rows: Rows) -> None:
    value = figures(*arrays(rows), 0.5)
    positives, negatives = [s for u, s in rows if u], [s for u, s in rows if not u]
    if positives and negatives:
        wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positives, negatives)]
        assert value.auroc == pytest.approx(sum(wins) / len(wins))
    else:
        assert math.isnan(value.auroc)
    if positives:
        area, seen = 0.0, 0.0
        for threshold in sorted({score for _, score in rows}, reverse=True):
            flagged = [unsafe for unsafe, score in rows if score >= threshold]
            recall = sum(flagged) / len(positives)
            area += sum(flagged) / len(flagged) * (recall - seen)
            seen = recall
        assert value.auprc == pytest.approx(area)
    else:
        assert math.isnan(value.auprc)


@given(labelled, st.integers(1, 8).map(lambda step: step / 8))
def test_counts_are_of_all_rows_and_f1_is_the_harmonic_mean(rows: Rows, threshold: float) -> None:
    value = figures(*arrays(rows), threshold)
    counts = (value.true_positives, value.false_positives, value.false_negatives, value.true_negatives)
    assert sum(counts) == value.rows == len(rows)
    assert value.true_positives + value.false_negatives == value.unsafe == sum(unsafe for unsafe, _ in rows)
    if value.true_positives:
        assert value.f1 == pytest.approx(2 / (1 / value.precision + 1 / value.recall))


@given(labelled)
def test_the_order_of_rows_does_not_matter(rows: Rows) -> None:
    assert str(figures(*arrays(rows), 0.5)) == str(figures(*arrays(rows[::-1]), 0.5))


@given(labelled)
def test_precision_and_recall_are_those_of_the_thresholds(rows: Rows) -> None:
    unsafe, scores = arrays(rows)
    thresholds, precision, recall = precision_recall(unsafe, scores)
    assert list(thresholds) == sorted(set(scores), reverse=True)
    for index, threshold in enumerate(thresholds):
        value = figures(unsafe, scores, threshold)
        assert precision[index] == pytest.approx(value.precision)
        assert recall[index] == pytest.approx(value.recall, nan_ok=True)


def test_calibration_by_hand() -> None:
    unsafe, scores = arrays([(True, 0.95), (False, 1.0), (False, 0.25), (True, 0.15), (False, 0.05)])
    value = calibration(unsafe, scores, bins=2)
    low, high = value.bins
    assert (low.rows, high.rows, high.unsafe_share) == (3, 2, 0.5)
    assert low.unsafe_share == pytest.approx(1 / 3)
    assert low.mean_score == pytest.approx(0.15)
    assert value.ece == pytest.approx(3 / 5 * (1 / 3 - 0.15) + 2 / 5 * (0.975 - 0.5))
    assert value.brier == pytest.approx((0.05**2 + 1 + 0.25**2 + 0.85**2 + 0.05**2) / 5)


def test_a_score_on_an_edge_is_in_the_bin_above_and_one_in_the_last() -> None:
    value = calibration(*arrays([(True, 0.5), (True, 1.0)]), bins=2)
    assert [each.rows for each in value.bins] == [0, 2]
    assert math.isnan(value.bins[0].mean_score)


@given(labelled)
def test_calibration_is_the_weighted_gap_of_its_bins(rows: Rows) -> None:
    value = calibration(*arrays(rows))
    assert sum(each.rows for each in value.bins) == len(rows)
    gaps = [each.rows * abs(each.mean_score - each.unsafe_share) for each in value.bins if each.rows]
    assert value.ece == pytest.approx(sum(gaps) / len(rows))
    assert 0 <= value.ece <= 1


@given(labelled, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_suggested_threshold_is_the_lowest_that_keeps_the_rate(rows: Rows, wanted: float) -> None:
    unsafe, scores = arrays(rows)
    if unsafe.all():
        return
    kept = [s for s in sorted(set(scores)) if s > 0 and figures(unsafe, scores, s).false_positive_rate <= wanted]
    choice = threshold_for_fpr(unsafe, scores, wanted)
    if not kept:
        assert choice is None
        return
    assert choice is not None and choice.threshold == kept[0]
    value = figures(unsafe, scores, choice.threshold)
    assert (choice.false_positive_rate, choice.precision) == (value.false_positive_rate, value.precision)
    assert choice.recall == pytest.approx(value.recall, nan_ok=True)


@given(labelled)
def test_no_threshold_beats_the_best_f1(rows: Rows) -> None:
    unsafe, scores = arrays(rows)
    choice = best_f1(unsafe, scores)
    every = [figures(unsafe, scores, score).f1 for score in set(scores) if score > 0]
    highest = max((value for value in every if value > 0), default=None)
    assert (None if choice is None else choice.f1) == highest


def test_intervals_hold_the_value_and_narrow_with_rows() -> None:
    rng = np.random.default_rng(7)
    unsafe = rng.random(2000) < 0.4
    scores = np.clip(unsafe * 0.3 + rng.random(2000) * 0.7, 0, 1)
    whole, part = intervals(unsafe, scores, 0.5), intervals(unsafe[:200], scores[:200], 0.5)
    value = figures(unsafe, scores, 0.5)
    for name in SHARES:
        low, high = whole[name]
        assert low < getattr(value, name) < high
        assert high - low < part[name][1] - part[name][0]


def test_the_interval_of_recall_is_a_binomial_s() -> None:
    unsafe = np.ones(1000, bool)
    scores = (np.arange(1000) < 700).astype(float)
    low, high = intervals(unsafe, scores, 0.5, rounds=4000)["recall"]
    deviation = math.sqrt(0.7 * 0.3 / 1000)
    assert low == pytest.approx(0.7 - 1.96 * deviation, abs=0.003)
    assert high == pytest.approx(0.7 + 1.96 * deviation, abs=0.003)


def test_intervals_are_repeatable_and_not_defined_without_a_class() -> None:
    unsafe, scores = arrays([(False, 0.2), (False, 0.7), (False, 0.1)])
    first, second = intervals(unsafe, scores, 0.5), intervals(unsafe, scores, 0.5)
    assert str(first) == str(second)
    assert all(math.isnan(bound) for bound in first["recall"])
    assert first["false_positive_rate"] == (0.0, 1.0)


def test_large_data_is_resampled_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    unsafe, scores = rng.random(300) < 0.5, rng.random(300)
    whole = intervals(unsafe, scores, 0.5, rounds=50)
    monkeypatch.setattr("guard.evaluation.metrics._BOOTSTRAP_CELLS", 300)
    assert intervals(unsafe, scores, 0.5, rounds=50) == whole


def test_f1_change_is_paired() -> None:
    rng = np.random.default_rng(2)
    unsafe = rng.random(1000) < 0.5
    flagged = unsafe ^ (rng.random(1000) < 0.2)
    change, interval = f1_change(unsafe, flagged, flagged)
    assert (change, interval) == (0.0, (0.0, 0.0))  # the same answers: no noise between two unpaired samples
    worse = flagged & (rng.random(1000) < 0.8)
    change, (low, high) = f1_change(unsafe, flagged, worse)
    ours, theirs = (figures(unsafe, given.astype(float), 0.5).f1 for given in (flagged, worse))
    assert change == pytest.approx(ours - theirs)
    assert 0 < low < change < high
