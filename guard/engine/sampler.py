"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.errors import InvalidInputError, ModelOutputError

MAX_TEMPERATURE = 2.0


@dataclass(frozen=True)
class SamplingParams:
    """``temperature`` 0 is greedy. ``top_p`` keeps the smallest set of tokens with that probability (Holtzman et al.
    2019, "The Curious Case of Neural Text Degeneration"); ``top_k`` the k most likely, 0 = all. Same ``seed``, same
    text.

    Raises InvalidInputError naming the field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= MAX_TEMPERATURE:
            raise InvalidInputError("temperature", f"expected 0 to {MAX_TEMPERATURE:g}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInputError("top_p", "expected a number above 0 and at most 1")
        if self.top_k < 0:
            raise InvalidInputError("top_k", "expected 0 (all tokens) or more")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise InvalidInputError("seed", "expected 0 to 2^64 - 1")


class Sampler:
    """Draws the tokens of one sequence."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.Philox(params.seed))

    def choose(self, logits: npt.NDArray[np.floating]) -> int:
        """The row of the chosen token in ``logits`` [rows]; raises ModelOutputError when they are not finite."""
        if not np.isfinite(logits).all():
            raise ModelOutputError("the model's logits are not finite")
        if self._params.temperature == 0.0:
            return int(np.argmax(logits))
        below_best = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore"):  # a tiny temperature: -inf for all but the best, which is right
            rows, probabilities = self._candidates(below_best / self._params.temperature)
        # Inverse of the cumulative distribution: one draw a token, whatever the number of candidates.
        index = np.searchsorted(np.cumsum(probabilities), self._random.random() * probabilities.sum(), side="right")
        return int(rows[min(int(index), len(rows) - 1)])

    def _candidates(self, logits: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """The rows that may be drawn, most likely first, and their probabilities (not normalized)."""
        keep = min(self._params.top_k or len(logits), len(logits))
        rows = np.argpartition(-logits, keep - 1)[:keep] if keep < len(logits) else np.arange(len(logits))
        rows = rows[np.argsort(-logits[rows], kind="stable")]
        probabilities = np.exp(logits[rows] - logits[rows[0]])
        if self._params.top_p < 1.0:
            mass = np.cumsum(probabilities)
            enough = int(np.searchsorted(mass, self._params.top_p * mass[-1])) + 1
            rows, probabilities = rows[:enough], probabilities[:enough]
        return rows, probabilities
