"""How a matrix becomes small integers, in the layouts that ONNX Runtime's kernels want."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from export.checkpoint.model import Float32
from export.quantize.parallel import for_each_band

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]

#: Steps of the second 8-bit weight in one step of the first: what is left is at most half a step, 127 of these.
SECOND_PLANE = 254
#: Values worked on at a time (512 KiB), so that they stay in a core's cache in between.
_CACHED = 1 << 17
#: Fractions of a 4-bit block's largest magnitude that code -8 may stand for; the least squared error wins. 8/7 is plain
#: rounding to -7..7, the others use the lone extra code, and below 1 they clip.
_CLIP_CANDIDATES = (np.float32(8 / 7), *(np.float32(step / 100) for step in range(100, 68, -4)))


def quantize_rows(weight: Float32) -> tuple[Int8, Float32]:
    """Symmetric 8-bit per output channel: ``weight`` [n, k] -> (int8 [n, k], scales float32 [n])."""
    integers = np.empty(weight.shape, np.int8)
    scales = np.empty(len(weight), np.float32)

    def quantize(band: slice) -> None:
        rows = weight[band]
        scales[band] = _scale(np.maximum(rows.max(axis=1), -rows.min(axis=1)))
        integers[band] = np.rint(rows / scales[band, None])

    for_each_band(len(weight), _band_rows(weight), quantize)
    return integers, scales


def quantize_rows_twice(weight: Float32) -> tuple[Int8, Int8, Float32]:
    """Two 8-bit weights per element: ``weight`` [n, k] = (first + second / 254) * scales, to about 16 bits."""
    first, scales = quantize_rows(weight)
    rest = weight / scales[:, None] - first
    return first, np.rint(rest * np.float32(SECOND_PLANE)).astype(np.int8), scales


def quantize_blocks(weight: Float32, bits: int, block: int) -> tuple[UInt8, Float32]:
    """MatMulNBits' symmetric layout, zero point 2^(bits-1).

    ``weight`` [n, k] -> (uint8 [n, k/block, block * bits / 8], scales float32 [n, k/block]). With 4 bits the lower
    nibble holds the earlier value. ``block`` must divide k.
    """
    blocks = weight.reshape(len(weight), -1, block)
    codes = np.empty((*blocks.shape[:2], block * bits // 8), np.uint8)
    scales = np.empty(blocks.shape[:2], np.float32)

    def quantize(band: slice) -> None:
        codes[band], scales[band] = _eight_bit(blocks[band]) if bits == 8 else _four_bit(blocks[band])

    for_each_band(len(weight), _band_rows(weight), quantize)
    return codes, scales


def block_size(columns: int, largest: int) -> int:
    """The largest power of two from 16 to ``largest`` that divides ``columns``; 0 when there is none."""
    block = largest
    while block >= 16 and columns % block:
        block //= 2
    return block if block >= 16 else 0


def largest_divisor(value: int, limit: int) -> int:
    """The largest divisor of ``value`` that is at most ``limit``."""
    return next(divisor for divisor in range(limit, 0, -1) if value % divisor == 0)


def _band_rows(weight: Float32) -> int:
    return max(1, _CACHED // int(weight.shape[1]))


def _scale(magnitude: Float32) -> Float32:
    """Scale that maps ``magnitude`` to 127; 1 for an all-zero channel."""
    return np.where(magnitude > 0, magnitude / np.float32(127), np.float32(1)).astype(np.float32)


def _eight_bit(blocks: Float32) -> tuple[UInt8, Float32]:
    scales = _scale(np.abs(blocks).max(axis=2))
    codes = np.rint(blocks / scales[..., None]) + np.float32(128)
    return codes.astype(np.uint8), scales


def _four_bit(blocks: Float32) -> tuple[UInt8, Float32]:
    scales = four_bit_scales(blocks)
    codes = four_bit_codes(blocks, scales[..., None]) + np.float32(8)
    return pack_nibbles(codes.astype(np.uint8)), scales


def four_bit_scales(blocks: Float32, importance: Float32 | None = None) -> Float32:
    """The scale [n, blocks] with the least squared error of each of ``blocks`` [n, blocks, block].

    The largest magnitude takes the lone extra code, -8, so its sign goes into the scale. ``importance`` [block] is
    what an error in each item counts.
    """
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    best_error = np.full(peak.shape, np.inf, dtype=np.float32)
    best_scale = np.ones_like(peak)
    for clip in _CLIP_CANDIDATES:
        scale = np.where(peak != 0, peak * (clip / np.float32(-8)), np.float32(1)).astype(np.float32)
        squares = np.square(four_bit_codes(blocks, scale[..., None]) * scale[..., None] - blocks)
        error = squares.sum(axis=2) if importance is None else (squares * importance).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    return best_scale


def four_bit_codes(values: Float32, scale: Float32) -> Float32:
    """Integers -8..7 as floats."""
    codes: Float32 = np.rint(values / scale)
    np.clip(codes, np.float32(-8), np.float32(7), out=codes)
    return codes


def pack_nibbles(codes: UInt8) -> UInt8:
    """[..., n] codes 0..15 to [..., n / 2] bytes, the earlier one in the lower half."""
    return codes[..., 0::2] + codes[..., 1::2] * np.uint8(16)
