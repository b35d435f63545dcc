"""Orthogonal rotations that spread outliers over all channels, so that 8 bits per token are enough.

After QuaRot (arXiv:2404.00456) and SpinQuant (arXiv:2405.16406): a rotation merged into the weights on both sides of
the residual stream leaves a Llama's function unchanged, because RMSNorm without its weight commutes with rotations.
"""

from __future__ import annotations

import math

import numpy as np

from export.checkpoint.model import Float32
from export.quantize.parallel import for_each_band

#: Values rotated at a time (512 KiB): they stay in a core's cache through all the passes.
_CACHED = 1 << 17


class Rotation:
    """The orthogonal map ``x -> (H kron C) (signs * x)`` on vectors of ``size`` = 2^k * m channels, m odd.

    H is the 2^k Hadamard matrix over sqrt(2^k), C the orthonormal DCT-II of size m (a plain 1 for m = 1), ``signs``
    random but fixed by ``seed``. It is applied by additions and multiplications in one fixed order and never through
    BLAS, so that every machine gets the same bits, with any number of threads.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._odd = size
        while self._odd % 2 == 0:
            self._odd //= 2
        self._power = size // self._odd
        self._cosines = _dct(self._odd)
        self._signs = _signs(size, seed)
        self._vectors = max(1, _CACHED // size)

    def __str__(self) -> str:
        return f"H{self._power}" if self._odd == 1 else f"H{self._power}xDCT{self._odd}"

    def apply_to_columns(self, matrix: Float32) -> None:
        """Rotate every column of ``matrix`` [groups * size, n] in place, each run of ``size`` values by itself."""
        for group in matrix.reshape(-1, self.size, matrix.shape[1]):
            self._rotate_in_place(group)

    def apply_to_rows(self, matrix: Float32) -> None:
        """Rotate every row of ``matrix`` [n, groups * size], which is C-contiguous, in place, as above."""
        self._rotate_in_place(matrix.reshape(-1, self.size).T)

    def matrix(self) -> Float32:
        """The rotation as a dense [size, size] matrix M: rotated = M @ x."""
        dense = np.eye(self.size, dtype=np.float32)
        self.apply_to_columns(dense)
        return dense

    def _rotate_in_place(self, columns: Float32) -> None:
        def rotate(band: slice) -> None:
            columns[:, band] = self._rotated(columns[:, band])

        for_each_band(columns.shape[1], self._vectors, rotate)

    def _rotated(self, columns: Float32) -> Float32:
        """Each column of ``columns`` [size, n] rotated, as a new C-contiguous array."""
        part = np.empty(columns.shape, np.float32)
        np.multiply(columns, self._signs[:, None], out=part)
        differences = np.empty(part.size // 2, np.float32)
        step = self._odd
        while step < self.size:
            pairs = part.reshape(self.size // (2 * step), 2, -1)
            upper, lower = pairs[:, 0, :], pairs[:, 1, :]
            difference = differences.reshape(upper.shape)
            np.subtract(upper, lower, out=difference)
            upper += lower
            lower[...] = difference
            step *= 2
        part *= np.float32(1 / math.sqrt(self._power))
        return part if self._odd == 1 else self._cosine_transform(part)

    def _cosine_transform(self, part: Float32) -> Float32:
        inputs = part.reshape(self._power, self._odd, -1)
        outputs = np.zeros_like(inputs)
        for row in range(self._odd):
            for column in range(self._odd):
                outputs[:, row] += self._cosines[row, column] * inputs[:, column]
        return outputs.reshape(part.shape)


def _dct(size: int) -> Float32:
    """The orthonormal DCT-II matrix of ``size``."""
    index = np.arange(size, dtype=np.float64)
    cosines = np.cos(np.pi / size * (index[None, :] + 0.5) * index[:, None]) * math.sqrt(2 / size)
    cosines[0] = math.sqrt(1 / size)
    return cosines.astype(np.float32)


def _signs(size: int, seed: int) -> Float32:
    """``size`` random signs from the raw bits of PCG64, whose stream numpy guarantees to stay the same."""
    bits = np.random.PCG64(seed).random_raw(size) >> np.uint64(63)
    signs: Float32 = np.where(bits == 0, np.float32(1), np.float32(-1))
    return signs
