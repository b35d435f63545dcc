"""4-bit rounding in which later input channels make up for the errors of earlier ones.

GPTQ (Frantar et al., arXiv:2210.17323), within runs of input channels: when a channel is rounded, what the error does
to the product is taken back, as far as possible, by changing the channels after it. How far that is possible says the
second moment of the linear's inputs, which calibration measures.
"""

from __future__ import annotations

import numpy as np

from export.checkpoint.model import Float32
from export.quantize.formats import UInt8, block_size, four_bit_codes, four_bit_scales, largest_divisor, pack_nibbles
from export.quantize.parallel import for_each_band
from guard.errors import CheckpointError

#: Input channels that make up for one another at most; a longer run's matrices would take hundreds of MiB.
_LONGEST_RUN = 2048
#: Of the mean second moment, added to all: keeps the inverse finite where few texts say little.
_DAMPING = 0.01
#: Channels whose errors are passed on together to the channels after them.
_CHUNK = 128
#: Rows worked on at a time.
_ROWS = 256


def run_size(channels: int) -> int:
    """How many of ``channels`` make up for one another: a divisor that holds whole blocks of any size."""
    unit = block_size(channels, _CHUNK) or 1
    return unit * largest_divisor(channels // unit, _LONGEST_RUN // unit)


def inverse_factors(inputs: Float32) -> Float32:
    """Upper Cholesky factors [runs, size, size] of the inverse second moments of ``inputs`` [tokens, channels].

    Raises CheckpointError for inputs that are not finite.
    """
    channels = inputs.shape[1]
    size = run_size(channels)
    factors = np.empty((channels // size, size, size), np.float32)
    for run in range(len(factors)):
        part = inputs[:, run * size : (run + 1) * size]
        moment = (part.T @ part).astype(np.float64)
        if not np.isfinite(moment).all():
            raise CheckpointError("calibration: with these weights, what enters a linear is not finite")
        moment[np.diag_indices(size)] += _DAMPING * max(float(np.trace(moment)) / size, 1e-30)
        factors[run] = np.linalg.cholesky(np.linalg.inv(moment)).T
    return factors


def quantize_blocks_compensated(weight: Float32, block: int, factors: Float32) -> tuple[UInt8, Float32]:
    """As ``formats.quantize_blocks`` with 4 bits, for a linear whose inputs gave ``factors``."""
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, columns // block), np.float32)
    size = factors.shape[1]

    def quantize(band: slice) -> None:
        for run, factor in enumerate(factors):
            channels = np.ascontiguousarray(weight[band, run * size : (run + 1) * size].T)
            run_codes, run_scales = _round(channels, factor, block)
            codes[band, run * size : (run + 1) * size] = run_codes.T
            scales[band, run * size // block : (run + 1) * size // block] = run_scales.T

    for_each_band(rows, _ROWS, quantize)
    return pack_nibbles(codes.reshape(rows, -1, block)), scales


def _round(channels: Float32, factor: Float32, block: int) -> tuple[UInt8, Float32]:
    """Codes [size, n] and scales [size / block, n] of ``channels`` [size, n], which it overwrites."""
    size, rows = channels.shape
    codes = np.empty((size, rows), np.uint8)
    scales = np.empty((size // block, rows), np.float32)
    importance: Float32 = np.reciprocal(np.square(np.diagonal(factor)))
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        errors = np.empty((stop - start, rows), np.float32)
        for channel in range(start, stop):
            if channel % block == 0:
                members = slice(channel, channel + block)
                blocks = np.ascontiguousarray(channels[members].T)[:, None, :]
                scales[channel // block] = four_bit_scales(blocks, importance[members])[:, 0]
            scale = scales[channel // block]
            rounded = four_bit_codes(channels[channel], scale)
            codes[channel] = rounded + np.float32(8)
            errors[channel - start] = (channels[channel] - rounded * scale) / factor[channel, channel]
            following = slice(channel + 1, stop)
            channels[following] -= factor[channel, following, None] * errors[channel - start]
        channels[stop:] -= factor[start:stop, stop:].T @ errors
    return codes, scales
