"""Quality figures of a binary guard (positive = unsafe), with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """Shares in 0..1; NaN where a class is missing. ``rows`` and ``unsafe`` count."""

    rows: int
    unsafe: int
    f1: float
    precision: float
    recall: float
    false_positive_rate: float
    auprc: float


def quality(unsafe: Bools, scores: Floats, threshold: float = 0.5) -> Quality:
    """Figures at ``threshold`` (a score equal to it counts as unsafe) and over all thresholds (AUPRC)."""
    flagged = scores >= threshold
    hits, flags, positives = int((flagged & unsafe).sum()), int(flagged.sum()), int(unsafe.sum())
    negatives = len(unsafe) - positives
    return Quality(
        rows=len(unsafe),
        unsafe=positives,
        f1=_ratio(2 * hits, flags + positives),
        precision=_ratio(hits, flags),
        recall=_ratio(hits, positives),
        false_positive_rate=_ratio(flags - hits, negatives),
        auprc=average_precision(unsafe, scores),
    )


def average_precision(unsafe: Bools, scores: Floats) -> float:
    """Area under the precision-recall steps: sum of precision times gain of recall, equal scores taken together."""
    positives = int(unsafe.sum())
    if positives == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(unsafe[order])
    last = np.append(ordered[1:] != ordered[:-1], True)  # the last row of each group of equal scores
    hits, taken = hits[last], np.arange(1, len(scores) + 1)[last]
    gain = np.diff(hits, prepend=0) / positives
    return float((hits / taken * gain).sum())


def interval(
    unsafe: Bools, scores: Floats, figure: Callable[[Quality], float], rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of ``figure`` over resampled rows (Efron 1979)."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        chosen = rng.integers(0, len(unsafe), len(unsafe))
        values.append(figure(quality(unsafe[chosen], scores[chosen])))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
