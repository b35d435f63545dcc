"""The tensor types of GGML that the exporter reads, and how their blocks become float32.

Block layouts: github.com/ggml-org/ggml, src/ggml-common.h (``block_q4_0`` and so on) and the ``dequantize_row_*``
functions of src/ggml-quants.c. Each function here takes blocks as uint8 [n, bytes of a block] and returns float32
[n, items of a block].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from export.checkpoint.model import Float32

Blocks = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GgmlType:
    """A readable tensor type: ``items`` weights are stored together in ``bytes`` bytes."""

    name: str
    items: int
    bytes: int
    dequantize: Callable[[Blocks], Float32]


def _half(blocks: Blocks, start: int) -> Float32:
    """The float16 at byte ``start`` of each block, as a float32 column [n, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Blocks) -> Blocks:
    """[..., k] bytes to [..., 2 k] values: the low halves of all bytes, then the high halves."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(packed: Blocks) -> Blocks:
    """[n, 4] bytes to [n, 32]: bit i of the little-endian word, as 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _f32(blocks: Blocks) -> Float32:
    return blocks.view("<f4").astype(np.float32)


def _f16(blocks: Blocks) -> Float32:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: Blocks) -> Float32:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Blocks) -> Float32:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> Float32:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> Float32:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (values.astype(np.float32) - 16)


def _q5_1(blocks: Blocks) -> Float32:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * values.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Blocks) -> Float32:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _k_scales(packed: Blocks) -> tuple[Float32, Float32]:
    """12 bytes as eight 6-bit scales and eight 6-bit minimums, each [n, 8] (``get_scale_min_k4`` in ggml-quants.c)."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6 << 4)), axis=1)
    minimums = np.concatenate((middle & 63, (high >> 4) | (middle >> 6 << 4)), axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _k_values(blocks: Blocks, values: Blocks) -> Float32:
    """Scale [n, 8, 32] values by the super-block's d, dmin and 6-bit scales (its first 16 bytes)."""
    scales, minimums = _k_scales(blocks[:, 4:16])
    factor, offset = _half(blocks, 0) * scales, _half(blocks, 2) * minimums
    return (factor[:, :, None] * values.astype(np.float32) - offset[:, :, None]).reshape(-1, 256)


def _q4_k(blocks: Blocks) -> Float32:
    return _k_values(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Blocks) -> Float32:
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # Bit s of the 32 high bytes is the fifth bit of sub-block s.
    fifth = (blocks[:, 16:48, None] >> np.arange(8, dtype=np.uint8) & 1).astype(np.uint8)
    return _k_values(blocks, low | (fifth.transpose(0, 2, 1) << np.uint8(4)).astype(np.uint8))


def _q6_k(blocks: Blocks) -> Float32:
    # Two halves of 128 values; in each, 64 bytes hold four runs of 32 low nibbles and 32 bytes their upper two bits.
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    values = (low | (pairs << 4)).astype(np.float32) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (values.reshape(-1, 16, 16) * scales[:, :, None]).reshape(-1, 256)


#: Readable types by their number in the file (``enum ggml_type`` in ggml.h).
READABLE: Final[Mapping[int, GgmlType]] = {
    0: GgmlType("F32", 1, 4, _f32),
    1: GgmlType("F16", 1, 2, _f16),
    2: GgmlType("Q4_0", 32, 18, _q4_0),
    3: GgmlType("Q4_1", 32, 20, _q4_1),
    6: GgmlType("Q5_0", 32, 22, _q5_0),
    7: GgmlType("Q5_1", 32, 24, _q5_1),
    8: GgmlType("Q8_0", 32, 34, _q8_0),
    12: GgmlType("Q4_K", 256, 144, _q4_k),
    13: GgmlType("Q5_K", 256, 176, _q5_k),
    14: GgmlType("Q6_K", 256, 210, _q6_k),
    30: GgmlType("BF16", 1, 2, _bf16),
}

#: Names of other types, so that a refusal can say which one it met.
OTHER_NAMES: Final[Mapping[int, str]] = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
