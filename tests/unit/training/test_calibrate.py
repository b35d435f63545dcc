"""Calibration folded into the head's rows (needs torch: the reference extra)."""

from __future__ import annotations

import numpy as np
import pytest

from guard.evaluation.metrics import Bools, Floats

calibrate = pytest.importorskip("training.calibrate")


def _features(rows: int = 400, hidden: int = 12) -> tuple[Floats, Bools]:
    """Features with a constant direction, and labels that the second feature tells with some noise."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(rows, hidden))
    features[:, 0] = 7.0
    unsafe = features[:, 1] + 0.5 * rng.normal(size=rows) > 0.4
    return features, unsafe


def test_the_constant_direction_gives_one_on_every_row() -> None:
    features, _ = _features()
    direction = calibrate.constant_direction(features)
    assert np.abs(features @ direction - 1).max() < 0.02


def test_the_boundary_has_the_highest_f1() -> None:
    features, unsafe = _features()
    margins = features[:, 1]
    boundary = calibrate.best_boundary(margins, unsafe)

    def f1(cut: float) -> float:
        flagged = margins >= cut
        return float(2 * (flagged & unsafe).sum() / (flagged.sum() + unsafe.sum()))

    assert f1(boundary) == pytest.approx(max(f1(cut) for cut in margins))


def test_the_boundary_of_one_margin_is_that_margin() -> None:
    assert calibrate.best_boundary(np.array([2.0, 2.0]), np.array([True, False])) == 2.0


def test_the_scale_is_found_that_labels_were_drawn_with() -> None:
    rng = np.random.default_rng(6)
    margins = rng.normal(scale=4, size=20_000)
    unsafe = rng.random(20_000) < 1 / (1 + np.exp(-0.6 * margins))
    assert calibrate.best_scale(margins, unsafe) == pytest.approx(0.6, abs=0.05)


def test_moved_rows_give_the_scaled_margin_and_leave_the_others() -> None:
    features, _ = _features()
    rng = np.random.default_rng(7)
    head = rng.normal(size=(5, 12)).astype(np.float32)
    moved = calibrate.moved(head, 1, 3, calibrate.constant_direction(features), boundary=0.8, scale=0.5)
    before = features @ (head[3] - head[1])
    after = features @ (moved[3] - moved[1])
    assert np.abs(after - 0.5 * (before - 0.8)).max() < 0.02
    np.testing.assert_array_equal(moved[[0, 2, 4]], head[[0, 2, 4]])
    np.testing.assert_allclose(moved[3] + moved[1], head[3] + head[1], rtol=1e-4, atol=1e-5)
