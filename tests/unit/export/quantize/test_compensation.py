from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from export.quantize.compensation import inverse_factors, quantize_blocks_compensated, run_size
from export.quantize.formats import quantize_blocks
from guard.errors import CheckpointError
from tests.unit.export.quantize.test_formats import unpack

Float32 = npt.NDArray[np.float32]
random = np.random.default_rng(0)


def correlated(tokens: int, channels: int) -> Float32:
    """Inputs with far fewer directions than channels, as a model's are."""
    mixing = np.random.default_rng(1).standard_normal((8, channels), np.float32)
    return random.standard_normal((tokens, 8), np.float32) @ mixing + 0.3 * random.standard_normal(
        (tokens, channels), np.float32
    )


@pytest.mark.parametrize("block", [32, 64])
def test_products_are_nearer_than_after_plain_rounding(block: int) -> None:
    """On inputs other than those of the calibration, with a last chunk that is not full."""
    weight = random.standard_normal((24, 192), np.float32)
    plain = unpack(*quantize_blocks(weight, 4, block), 4)
    codes, scales = quantize_blocks_compensated(weight, block, inverse_factors(correlated(300, 192)))
    assert codes.shape == (24, 192 // block, block // 2) and scales.shape == (24, 192 // block)
    inputs = correlated(100, 192)
    errors = [np.square(inputs @ (each - weight).T).mean() for each in (plain, unpack(codes, scales, 4))]
    assert errors[1] < 0.5 * errors[0]


def test_inputs_without_correlation_change_nothing() -> None:
    weight = random.standard_normal((5, 64), np.float32)
    identity = np.eye(64, dtype=np.float32)
    codes, scales = quantize_blocks_compensated(weight, 32, inverse_factors(identity))
    expected = quantize_blocks(weight, 4, 32)
    assert (codes == expected[0]).all()
    np.testing.assert_array_equal(scales, expected[1])


def test_weights_on_the_grid_stay_as_they_are() -> None:
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), (3, 4))
    codes, scales = quantize_blocks_compensated(weight, 32, inverse_factors(correlated(50, 64)))
    assert (unpack(codes, scales, 4) == weight).all()


def test_factors_of_dead_and_of_few_inputs_are_finite() -> None:
    inputs = np.zeros((3, 48), np.float32)
    assert np.isfinite(inverse_factors(inputs)).all()
    inputs[:, :40] = correlated(3, 40)
    factors = inverse_factors(inputs)
    assert factors.shape == (1, 48, 48) and np.isfinite(factors).all()
    assert (np.diagonal(factors[0]) > 0).all() and (np.tril(factors[0], -1) == 0).all()


def test_wide_inputs_are_split_into_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.quantize.compensation.run_size", lambda channels: 64)
    inputs, weight = correlated(200, 128), random.standard_normal((4, 128), np.float32)
    factors = inverse_factors(inputs)
    assert factors.shape == (2, 64, 64)
    codes, scales = quantize_blocks_compensated(weight, 32, factors)
    for run in range(2):
        half = slice(run * 64, run * 64 + 64)
        part = quantize_blocks_compensated(weight[:, half], 32, factors[run : run + 1])
        assert (codes[:, 2 * run : 2 * run + 2] == part[0]).all() and (
            scales[:, 2 * run : 2 * run + 2] == part[1]
        ).all()


@pytest.mark.parametrize(("channels", "size"), [(2048, 2048), (8192, 2048), (1536, 1536), (5632, 1408), (11008, 256)])
def test_runs_hold_whole_blocks(channels: int, size: int) -> None:
    assert run_size(channels) == size


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        inverse_factors(np.full((4, 32), np.nan, np.float32))
