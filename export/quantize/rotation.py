"""Orthogonal rotations that spread outliers over all channels, so that 8 bits per token are enough.

After QuaRot (arXiv:2404.00456) and SpinQuant (arXiv:2405.16406): a rotation merged into the weights on both sides of the
residual stream leaves a Llama's function unchanged, because RMSNorm without its weight commutes with rotations.
"""

from __future__ import annotations

import math

import numpy as np

from export.checkpoint.model import Float32

#: Columns rotated at a time: 2048 x 64 floats stay in a core's L2 cache.
_COLUMNS = 64


class Rotation:
    """The orthogonal map ``x -> (H kron C) (signs * x)`` on vectors of ``size`` = 2^k * m channels, m odd.

    H is the 2^k Hadamard matrix over sqrt(2^k), C the orthonormal DCT-II of size m (a plain 1 for m = 1), ``signs`` random
    but fixed by ``seed``. It is applied by additions and multiplications in one fixed order and never through BLAS, so
    that every machine gets the same bits, with any number of threads.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._odd = size
        while self._odd % 2 == 0:
            self._odd //= 2
        self._power = size // self._odd
        self._cosines = _dct(self._odd)
        self._signs = _signs(size, seed)

    def __str__(self) -> str:
        return f"H{self._power}" if self._odd == 1 else f"H{self._power}xDCT{self._odd}"

    def apply(self, matrix: Float32) -> None:
        """Rotate every column of ``matrix`` [groups * size, columns] in place, each run of ``size`` rows by itself."""
        groups = matrix.reshape(-1, self.size, matrix.shape[1])
        for group in groups:
            for start in range(0, group.shape[1], _COLUMNS):
                part = group[:, start : start + _COLUMNS]
                part[...] = self._rotated(part * self._signs[:, None])

    def matrix(self) -> Float32:
        """The rotation as a dense [size, size] matrix M: rotated = M @ x."""
        dense = np.eye(self.size, dtype=np.float32)
        self.apply(dense)
        return dense

    def _rotated(self, part: Float32) -> Float32:
        """Hadamard and cosine transforms of ``part`` [size, columns], which is overwritten."""
        step = self._odd
        while step < self.size:
            pairs = part.reshape(-1, 2, step * part.shape[1])
            upper, lower = pairs[:, 0], pairs[:, 1]
            difference = upper - lower
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
