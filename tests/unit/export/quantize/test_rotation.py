from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.quantize.rotation import Rotation

sizes = st.sampled_from([1, 2, 3, 8, 12, 36, 64, 96, 160, 576])


@given(size=sizes, seed=st.integers(0, 9))
def test_is_orthogonal(size: int, seed: int) -> None:
    matrix = Rotation(size, seed).matrix().astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)


@given(size=sizes, groups=st.integers(1, 3), count=st.integers(1, 5))
def test_rows_and_columns_rotate_by_the_same_matrix(size: int, groups: int, count: int) -> None:
    rotation = Rotation(size, seed=3)
    rows = np.random.default_rng(size).standard_normal((count, groups * size), np.float32)
    columns = rows.T.copy()
    expected = (rows.reshape(-1, size) @ rotation.matrix().T).reshape(rows.shape)
    rotation.apply_to_rows(rows)
    rotation.apply_to_columns(columns)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert (columns == rows.T).all()


def test_spreads_one_outlier_over_all_channels() -> None:
    vector = np.zeros((1, 2048), np.float32)
    vector[0, 7] = 1000
    Rotation(2048, seed=1).apply_to_rows(vector)
    np.testing.assert_allclose(np.abs(vector), 1000 / np.sqrt(2048), rtol=1e-5)


def test_bits_are_those_of_every_machine() -> None:
    """Additions in a fixed order: this digest must hold wherever the tests run."""
    values = (np.arange(2 * 192, dtype=np.float32).reshape(2, 192) % 23) - 11
    Rotation(64, seed=5).apply_to_rows(values)
    assert (
        hashlib.sha256(values.tobytes()).hexdigest()
        == "1a6672dbedd21a53e7198d14dfeb60a470f4c9172fa2398e362c261b9be0b650"
    )


@pytest.mark.parametrize(("size", "name"), [(2048, "H2048"), (576, "H64xDCT9")])
def test_is_described_by_its_factors(size: int, name: str) -> None:
    assert str(Rotation(size, seed=0)) == name
