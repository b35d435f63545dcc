"""A few numbers in place of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Quantiles of ``count`` values."""

    count: int
    least: float
    p10: float
    median: float
    p90: float
    p95: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    ordered = sorted(values)
    return Spread(
        len(ordered),
        ordered[0],
        quantile(ordered, 0.1),
        quantile(ordered, 0.5),
        quantile(ordered, 0.9),
        quantile(ordered, 0.95),
        ordered[-1],
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's default; ``ordered`` ascends and is not empty."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
