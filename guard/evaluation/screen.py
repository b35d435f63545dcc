"""Thresholds for a screen (``guard.cascade``), from what two guards said about the same rows.

A threshold is chosen by the rows that it gets wrong by the large guard's verdict, at most a wanted share of them. The
next row of the same kind is wrong with a probability that has a bound, too: see ``share_bound``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from guard.evaluation.metrics import Bools, Floats, figures
from guard.evaluation.predictions import Prediction
from guard.evaluation.rows import Row

#: One-sided, of ``share_bound``.
CONFIDENCE = 0.95
_BISECTIONS = 60


@dataclass(frozen=True)
class Pairs:
    """Rows that both guards have read, in order: labels, the screen's scores, and whether the large guard flags them.

    A row without an answer of the screen has NaN: it goes to the large guard. One without an answer of the large guard
    counts as flagged, so that a screen which says SAFE there is wrong.
    """

    unsafe: Bools
    screen: Floats
    flagged: Bools

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        screen: Mapping[str, Prediction],
        large: Mapping[str, Prediction],
        threshold: float,
    ) -> Pairs:
        """``threshold`` is that of the policy; rows that one of them has not read are left out."""
        both = [row for row in rows if row.key in screen and row.key in large]
        scores = [screen[row.key].score for row in both]
        verdicts = [large[row.key].score for row in both]
        return cls(
            np.array([row.unsafe for row in both], bool),
            np.array([math.nan if score is None else score for score in scores], float),
            np.array([score is None or score >= threshold for score in verdicts], bool),
        )


@dataclass(frozen=True)
class Choice:
    """A pair of thresholds and what they do to the rows. Shares in 0..1; NaN of nothing.

    ``missed`` of the rows that the large guard flags are answered SAFE by the screen, ``missed_bound`` at most of new
    ones; ``overblocked`` of those that it does not flag are answered UNSAFE. ``f1`` is that of both guards together.
    """

    wanted: float
    safe_below: float
    unsafe_above: float
    answered: float
    missed: int
    missed_share: float
    missed_bound: float
    overblocked: int
    overblocked_share: float
    f1: float
    f1_large: float

    def time_s(self, screen_s: float, large_s: float) -> float:
        """Seconds a row with the screen: all rows take it, the others the large guard's seconds as well."""
        return screen_s + (1.0 - self.answered) * large_s


def choose(pairs: Pairs, wanted: float, unsafe_wanted: float | None, threshold: float) -> Choice:
    """The widest thresholds that answer at most a share ``wanted`` of the rows that the large guard flags with SAFE,
    and at most ``unsafe_wanted`` (None: the screen never says so) of those that it does not flag with UNSAFE.
    """
    read = ~np.isnan(pairs.screen)
    flagged, passed = pairs.screen[read & pairs.flagged], pairs.screen[read & ~pairs.flagged]
    below = min(_lowest_kept(flagged, int(wanted * pairs.flagged.sum())), threshold)
    above = 1.0
    if unsafe_wanted is not None:
        above = max(-_lowest_kept(-passed, int(unsafe_wanted * (~pairs.flagged).sum())), threshold)
    safe, unsafe = pairs.screen < below, pairs.screen > above  # false for NaN
    missed, overblocked = int((safe & pairs.flagged).sum()), int((unsafe & ~pairs.flagged).sum())
    together = (pairs.flagged & ~safe) | unsafe
    return Choice(
        wanted=wanted,
        safe_below=below,
        unsafe_above=above,
        answered=float((safe | unsafe).mean()) if len(safe) else math.nan,
        missed=missed,
        missed_share=_share(missed, int(pairs.flagged.sum())),
        missed_bound=share_bound(missed, int(pairs.flagged.sum())),
        overblocked=overblocked,
        overblocked_share=_share(overblocked, int((~pairs.flagged).sum())),
        f1=_f1(pairs.unsafe, together),
        f1_large=_f1(pairs.unsafe, pairs.flagged),
    )


def share_bound(wrong: int, rows: int, confidence: float = CONFIDENCE) -> float:
    """The upper limit of the share of wrong rows when ``wrong`` of ``rows`` were (Clopper and Pearson, 1934).

    It also holds for a threshold that was chosen by the same rows: the mass below the (k+1)-th smallest of n scores is
    distributed as Beta(k+1, n-k) whatever the scores are (Wilks, 1941), and its quantile is this limit.
    """
    if wrong >= rows:
        return 1.0
    low, high = wrong / rows, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _at_most(wrong, rows, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def _lowest_kept(scores: Floats, allowed: int) -> float:
    """The highest limit with at most ``allowed`` of ``scores`` below it; infinity when there are no more."""
    return float(np.sort(scores)[allowed]) if allowed < len(scores) else math.inf


def _at_most(wrong: int, rows: int, share: float) -> float:
    """P(X <= wrong) of a binomial, by logarithms: the terms are too small and too large for floats."""
    logs = [
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        + k * math.log(share) + (rows - k) * math.log1p(-share)
        for k in range(wrong + 1)
    ] if 0.0 < share < 1.0 else [-math.inf if share else 0.0]  # fmt: skip
    return math.fsum(math.exp(log) for log in logs)


def _f1(unsafe: Bools, flagged: Bools) -> float:
    return figures(unsafe, flagged.astype(float), 0.5).f1 if len(unsafe) else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
