from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export.quantize.formats import (
    block_size,
    largest_divisor,
    quantize_blocks,
    quantize_rows,
    quantize_rows_twice,
)

Float32 = npt.NDArray[np.float32]
weights = arrays(np.float32, (3, 64), elements=st.floats(-8, 8, width=32, allow_subnormal=False))


def unpack(codes: npt.NDArray[np.uint8], scales: Float32, bits: int) -> Float32:
    """What MatMulNBits computes with: (code - zero point) * scale."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    values: Float32 = (codes.astype(np.float32) - np.float32(2 ** (bits - 1))) * scales[..., None]
    return values.reshape(len(codes), -1)


@given(weights)
def test_rows_are_within_half_a_step(weight: Float32) -> None:
    integers, scales = quantize_rows(weight)
    assert integers.min() >= -127
    assert (np.abs(integers * scales[:, None] - weight) <= 0.501 * scales[:, None]).all()


@given(weights)
def test_the_second_plane_leaves_at_most_a_508th_of_a_step(weight: Float32) -> None:
    first, second, scales = quantize_rows_twice(weight)
    restored = (first + second / 254) * scales[:, None]
    assert (np.abs(restored - weight) <= 1.02 / 508 * scales[:, None]).all()


@given(weights, st.sampled_from([16, 32, 64]))
def test_8_bit_blocks_are_within_half_a_step(weight: Float32, block: int) -> None:
    codes, scales = quantize_blocks(weight, 8, block)
    assert codes.shape == (3, 64 // block, block)
    error = np.abs(unpack(codes, scales, 8) - weight).reshape(3, -1, block)
    assert (error <= 0.501 * scales[..., None]).all()


@given(weights)
def test_4_bit_blocks_are_no_worse_than_plain_rounding(weight: Float32) -> None:
    codes, scales = quantize_blocks(weight, 4, 32)
    assert codes.shape == (3, 2, 16)
    blocks = weight.reshape(3, 2, 32)
    step = np.where(blocks.any(axis=2), np.abs(blocks).max(axis=2) / 7, 1)[..., None]
    plain = np.clip(np.rint(blocks / step), -7, 7) * step
    error = np.square(unpack(codes, scales, 4).reshape(blocks.shape) - blocks).sum()
    assert error <= 1.001 * np.square(plain - blocks).sum() + 1e-5


def test_4_bit_clipping_beats_plain_rounding_on_ordinary_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    codes, scales = quantize_blocks(weight, 4, 32)
    blocks = weight.reshape(64, -1, 32)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 7
    plain = np.square(np.rint(blocks / step) * step - blocks).mean()
    assert np.square(unpack(codes, scales, 4) - weight).mean() < 0.85 * plain


def test_4_bits_hold_multiples_of_an_eighth_exactly() -> None:
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), 4).reshape(2, 32)
    codes, scales = quantize_blocks(weight, 4, 32)
    assert (unpack(codes, scales, 4) == weight).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    codes, scales = quantize_blocks(np.zeros((2, 32), np.float32), bits, 16)
    assert (scales == 1).all() and (unpack(codes, scales, bits) == 0).all()
    integers, row_scales = quantize_rows(np.zeros((2, 32), np.float32))
    assert (integers == 0).all() and (row_scales == 1).all()


@pytest.mark.parametrize(("columns", "largest", "block"), [(576, 128, 64), (2048, 128, 128), (48, 32, 16), (72, 32, 0)])
def test_block_size_divides_the_columns(columns: int, largest: int, block: int) -> None:
    assert block_size(columns, largest) == block


def test_largest_divisor() -> None:
    assert [largest_divisor(value, 4) for value in (8192, 1536, 9, 7)] == [4, 4, 3, 1]
