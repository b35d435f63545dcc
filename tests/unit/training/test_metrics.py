"""Quality figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import average_precision, interval, quality

_LABELLED = st.lists(st.tuples(st.booleans(), st.sampled_from((0.0, 0.2, 0.5, 0.5001, 0.9, 1.0))), min_size=1)


def test_quality_counts_as_by_hand() -> None:
    unsafe = np.array([True, True, True, False, False])
    scores = np.array([0.9, 0.5, 0.1, 0.7, 0.2])
    figures = quality(unsafe, scores)
    assert (figures.rows, figures.unsafe) == (5, 3)
    assert figures.precision == pytest.approx(2 / 3)
    assert figures.recall == pytest.approx(2 / 3)
    assert figures.f1 == pytest.approx(2 / 3)
    assert figures.false_positive_rate == pytest.approx(1 / 2)


def test_average_precision_of_a_known_ranking() -> None:
    # Ranks of the unsafe rows are 1 and 3: (1/1 + 2/3) / 2.
    assert average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])) == pytest.approx(5 / 6)


def test_equal_scores_do_not_depend_on_row_order() -> None:
    scores = np.full(4, 0.5)
    first = average_precision(np.array([True, True, False, False]), scores)
    last = average_precision(np.array([False, False, True, True]), scores)
    assert first == last == pytest.approx(0.5)


def test_a_missing_class_gives_no_number() -> None:
    figures = quality(np.array([False, False]), np.array([0.1, 0.9]))
    assert math.isnan(figures.recall)
    assert math.isnan(figures.auprc)
    assert figures.false_positive_rate == 0.5


@given(_LABELLED)
def test_f1_is_the_harmonic_mean_and_auprc_is_bounded(rows: list[tuple[bool, float]]) -> None:
    unsafe, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    figures = quality(unsafe, scores)
    if not math.isnan(figures.precision) and not math.isnan(figures.recall) and figures.precision + figures.recall > 0:
        harmonic = 2 * figures.precision * figures.recall / (figures.precision + figures.recall)
        assert figures.f1 == pytest.approx(harmonic)
    if unsafe.any():
        assert unsafe.mean() / len(rows) <= figures.auprc <= 1.0 + 1e-12


def test_the_interval_holds_the_figure_and_narrows_with_more_rows() -> None:
    rng = np.random.default_rng(3)

    def width(rows: int) -> float:
        unsafe = rng.random(rows) < 0.4
        scores = np.clip(unsafe * 0.3 + rng.random(rows) * 0.7, 0, 1)
        low, high = interval(unsafe, scores, lambda figures: figures.f1, rounds=200)
        assert low < quality(unsafe, scores).f1 < high
        return high - low

    assert width(2000) < width(60)
