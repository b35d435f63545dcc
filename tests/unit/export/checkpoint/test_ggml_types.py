from __future__ import annotations

import gguf
import numpy as np
import pytest

from export.checkpoint.ggml_types import OTHER_NAMES, READABLE

#: Where a block keeps its float16 scales: their exponents must not all be ones, or the weights are NaN.
_SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2)}


@pytest.mark.parametrize("number", [number for number, kind in READABLE.items() if kind.items > 1])
def test_every_block_dequantizes_as_in_the_gguf_package(number: int) -> None:
    kind = READABLE[number]
    blocks = np.random.default_rng(number).integers(0, 256, (500, kind.bytes), dtype=np.uint8)
    for start in _SCALES.get(kind.name, (208,)):
        blocks[:, start + 1] &= 0xBB
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(number))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(kind.dequantize(blocks), expected)


@pytest.mark.parametrize(("number", "dtype"), [(0, "<f4"), (1, "<f2")])
def test_plain_types(number: int, dtype: str) -> None:
    values = np.array([[1.5], [-2.25], [0.0]], dtype)
    np.testing.assert_array_equal(READABLE[number].dequantize(values.view(np.uint8)), values)


def test_bfloat16() -> None:
    raw = np.array([[0x80, 0x3F], [0x20, 0xC0]], np.uint8)
    np.testing.assert_array_equal(READABLE[30].dequantize(raw), [[1.0], [-2.5]])


def test_names_and_sizes_are_those_of_the_gguf_package() -> None:
    for number, kind in READABLE.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.items, kind.bytes)
    for number, name in OTHER_NAMES.items():
        assert gguf.GGMLQuantizationType(number).name == name
