"""How a matrix becomes small integers, in the layouts that ONNX Runtime's kernels want."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from export.checkpoint.model import Float32

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]

#: Fractions of a 4-bit block's largest magnitude tried as its clipping point; the least squared error wins.
_CLIP_CANDIDATES = tuple(np.float32(step / 100) for step in range(100, 68, -4))


def quantize_rows(weight: Float32) -> tuple[Int8, Float32]:
    """Symmetric 8-bit per output channel: ``weight`` [n, k] -> (int8 [n, k], scales float32 [n])."""
    scales = _scale(np.abs(weight).max(axis=1), 127)
    integers = np.rint(weight / scales[:, None]).astype(np.int8)
    return integers, scales


def quantize_blocks(weight: Float32, bits: int, block: int) -> tuple[UInt8, Float32]:
    """MatMulNBits' symmetric layout, zero point 2^(bits-1).

    ``weight`` [n, k] -> (uint8 [n, k/block, block * bits / 8], scales float32 [n, k/block]). With 4 bits the lower
    nibble holds the earlier value. ``block`` must divide k.
    """
    blocks = np.ascontiguousarray(weight).reshape(weight.shape[0], -1, block)
    scales, integers = _eight_bit(blocks) if bits == 8 else _four_bit(blocks)
    codes: UInt8 = integers.astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] + codes[..., 1::2] * np.uint8(16)
    return codes, scales


def block_size(columns: int, largest: int) -> int:
    """The largest power of two from 16 to ``largest`` that divides ``columns``; 0 when there is none."""
    block = largest
    while block >= 16 and columns % block:
        block //= 2
    return block if block >= 16 else 0


def _scale(magnitude: Float32, levels: int) -> Float32:
    """Scale that maps ``magnitude`` to ``levels``; 1 for an all-zero channel."""
    return cast(Float32, np.where(magnitude > 0, magnitude / np.float32(levels), np.float32(1)).astype(np.float32))


def _eight_bit(blocks: Float32) -> tuple[Float32, Float32]:
    scales = _scale(np.abs(blocks).max(axis=2), 127)
    return scales, np.rint(blocks / scales[..., None]) + np.float32(128)


def _four_bit(blocks: Float32) -> tuple[Float32, Float32]:
    """Codes 0..15 around 8. The largest magnitude takes the lone extra code, -8, so its sign goes into the scale."""
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    best_error = np.full(peak.shape, np.inf, dtype=np.float32)
    best_scale = np.ones_like(peak)
    for clip in _CLIP_CANDIDATES:
        scale = np.where(peak != 0, peak * (clip / np.float32(-8)), np.float32(1)).astype(np.float32)
        error = np.square(_four_bit_codes(blocks, scale) * scale[..., None] - blocks).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    return best_scale, _four_bit_codes(blocks, best_scale) + np.float32(8)


def _four_bit_codes(blocks: Float32, scale: Float32) -> Float32:
    return cast(Float32, np.clip(np.rint(blocks / scale[..., None]), -8, 7))
