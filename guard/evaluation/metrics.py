"""Quality figures of a binary guard. Positive = unsafe; a score equal to the threshold counts as flagged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
NAN = float("nan")

#: Bins of the reliability diagram, of equal width over 0..1.
CALIBRATION_BINS = 10
#: Resampled rows that are held in memory at a time (32 MiB of int64).
_BOOTSTRAP_CELLS = 1 << 22


@dataclass(frozen=True)
class Figures:
    """Counts, and shares in 0..1; NaN where a share has nothing to be a share of."""

    rows: int
    unsafe: int
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    f1: float
    precision: float
    recall: float
    false_positive_rate: float
    accuracy: float
    auprc: float
    auroc: float


#: The figures that get intervals.
SHARES = ("f1", "precision", "recall", "false_positive_rate", "auprc", "auroc")


@dataclass(frozen=True)
class Bin:
    """Rows with a score in [low, high) (the last bin: and high); NaN means when it has none."""

    low: float
    high: float
    rows: int
    mean_score: float
    unsafe_share: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and Brier score, with the bins behind the first."""

    ece: float
    brier: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Operating:
    """What a threshold gives."""

    threshold: float
    f1: float
    precision: float
    recall: float
    false_positive_rate: float


@dataclass(frozen=True)
class _Ranked:
    """Rows by falling score. ``ends``: index of the last row of each run of equal scores; ``scores`` those scores."""

    order: Counts
    ends: Counts
    scores: Floats


def figures(unsafe: Bools, scores: Floats, threshold: float) -> Figures:
    """All figures of ``scores`` float64 [n] against ``unsafe`` bool [n]."""
    flagged = scores >= threshold
    hits, alarms = int((flagged & unsafe).sum()), int((flagged & ~unsafe).sum())
    positives, negatives = int(unsafe.sum()), int((~unsafe).sum())
    every = np.ones((1, len(unsafe)), np.int64)
    return Figures(
        rows=len(unsafe),
        unsafe=positives,
        true_positives=hits,
        false_positives=alarms,
        false_negatives=positives - hits,
        true_negatives=negatives - alarms,
        f1=_share(2 * hits, hits + alarms + positives),
        precision=_share(hits, hits + alarms),
        recall=_share(hits, positives),
        false_positive_rate=_share(alarms, negatives),
        accuracy=_share(hits + negatives - alarms, len(unsafe)),
        auprc=float(_areas(unsafe, _rank(scores), every)["auprc"][0]),
        auroc=float(_areas(unsafe, _rank(scores), every)["auroc"][0]),
    )


def intervals(
    unsafe: Bools, scores: Floats, threshold: float, *, rounds: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95% percentile bootstrap interval of each of SHARES over resampled rows (Efron 1979).

    Resamples in which a figure is not defined (one class only) are left out of its interval; NaN when all are.
    """
    ranked, flagged, count = _rank(scores), scores >= threshold, len(unsafe)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[Floats]] = {name: [] for name in SHARES}
    step = max(1, _BOOTSTRAP_CELLS // max(1, count))
    for start in range(0, rounds, step):
        weights = _resample(count, min(step, rounds - start), rng)
        for name, values in _weighted(unsafe, flagged, ranked, weights).items():
            drawn[name].append(values)
    return {name: _interval(np.concatenate(values)) for name, values in drawn.items()}


def f1_change(
    unsafe: Bools, flagged: Bools, other: Bools, *, rounds: int = 1000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """F1 of ``flagged`` less F1 of ``other``, and its 95% interval over the same resampled rows for both.

    Resampling n rows draws their eight kinds (unsafe, flagged, other) from a multinomial, which is what is drawn here.
    """
    kinds = np.bincount(unsafe * 4 + flagged * 2 + other * 1, minlength=8)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(unsafe), kinds / max(1, len(unsafe)), size=rounds)
    change = [_f1_of_kinds(counts, 2) - _f1_of_kinds(counts, 1) for counts in (kinds[None], drawn)]
    return float(change[0][0]), _interval(change[1])


def precision_recall(unsafe: Bools, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Thresholds (distinct scores, falling), and precision and recall when each is the threshold: float64 [k]."""
    ranked = _rank(scores)
    hits = np.cumsum(unsafe[ranked.order])[ranked.ends]
    return ranked.scores, hits / (ranked.ends + 1), _divide(hits, np.full(len(hits), int(unsafe.sum())))


def calibration(unsafe: Bools, scores: Floats, bins: int = CALIBRATION_BINS) -> Calibration:
    """How far scores are from being probabilities.

    ECE = sum over bins of (rows of the bin / rows) * |mean score - share of unsafe rows| (Naeini et al. 2015), bins of
    equal width. Brier score = mean (score - label)^2 (Brier 1950).
    """
    index = np.minimum((scores * bins).astype(np.int64), bins - 1)
    rows = np.bincount(index, minlength=bins)
    score_sums = np.bincount(index, weights=scores, minlength=bins)
    means = _divide(score_sums, rows)
    shares = _divide(np.bincount(index, weights=unsafe, minlength=bins), rows)
    gaps = np.where(rows > 0, rows * np.abs(means - shares), 0.0)
    return Calibration(
        ece=_share(float(gaps.sum()), len(scores)),
        brier=float(np.square(scores - unsafe).mean()) if len(scores) else NAN,
        bins=tuple(Bin(i / bins, (i + 1) / bins, int(rows[i]), float(means[i]), float(shares[i])) for i in range(bins)),
    )


def threshold_for_fpr(unsafe: Bools, scores: Floats, wanted: float) -> Operating | None:
    """The lowest threshold whose false-positive rate is at most ``wanted``; None when none of the scores is one."""
    choices = _choices(unsafe, scores)
    allowed = [choice for choice in choices if choice.false_positive_rate <= wanted]
    return min(allowed, key=lambda choice: choice.threshold, default=None)


def best_f1(unsafe: Bools, scores: Floats) -> Operating | None:
    """The threshold with the highest F1 on these rows (an optimist's figure: it was chosen on them)."""
    return max((choice for choice in _choices(unsafe, scores) if choice.f1 > 0), key=lambda c: c.f1, default=None)


def _choices(unsafe: Bools, scores: Floats) -> list[Operating]:
    """What each distinct score above 0 gives as a threshold."""
    ranked = _rank(scores)
    flags = ranked.ends + 1
    hits = np.cumsum(unsafe[ranked.order])[ranked.ends]
    positives, negatives = int(unsafe.sum()), int((~unsafe).sum())
    return [
        Operating(
            threshold=float(threshold),
            f1=_share(2 * int(hit), int(flag) + positives),
            precision=_share(int(hit), int(flag)),
            recall=_share(int(hit), positives),
            false_positive_rate=_share(int(flag - hit), negatives),
        )
        for threshold, flag, hit in zip(ranked.scores, flags, hits, strict=True)
        if threshold > 0
    ]


def _rank(scores: Floats) -> _Ranked:
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(scores) else np.empty(0, np.int64)
    return _Ranked(order, ends, ordered[ends])


def _areas(unsafe: Bools, ranked: _Ranked, weights: Counts) -> dict[str, Floats]:
    """Areas under both curves when row i counts ``weights`` int64 [rounds, n] times -> float64 [rounds].

    AUPRC: average precision, the sum of precision times gain of recall, equal scores taken together. AUROC: the share
    of (unsafe, safe) pairs in the right order, equal scores counting half (Mann-Whitney).
    """
    ordered, positive = weights[:, ranked.order], unsafe[ranked.order]
    hits = np.cumsum(ordered * positive, axis=1)[:, ranked.ends]
    alarms = np.cumsum(ordered * ~positive, axis=1)[:, ranked.ends]
    gains, alarm_gains = np.diff(hits, axis=1, prepend=0), np.diff(alarms, axis=1, prepend=0)
    precision = np.divide(hits, hits + alarms, out=np.zeros(hits.shape), where=hits + alarms > 0)
    positives, negatives = hits[:, -1:].sum(axis=1), alarms[:, -1:].sum(axis=1)
    right = (alarm_gains * (hits - gains / 2)).sum(axis=1)
    return {
        "auprc": _divide((precision * gains).sum(axis=1), positives),
        "auroc": _divide(right, positives * negatives),
    }


def _weighted(unsafe: Bools, flagged: Bools, ranked: _Ranked, weights: Counts) -> dict[str, Floats]:
    hits, alarms = weights @ (flagged & unsafe), weights @ (flagged & ~unsafe)
    positives, negatives = weights @ unsafe, weights @ ~unsafe
    return {
        "f1": _divide(2 * hits, hits + alarms + positives),
        "precision": _divide(hits, hits + alarms),
        "recall": _divide(hits, positives),
        "false_positive_rate": _divide(alarms, negatives),
        **_areas(unsafe, ranked, weights),
    }


def _resample(count: int, rounds: int, rng: np.random.Generator) -> Counts:
    """How often each of ``count`` rows is drawn in each round: int64 [rounds, count]."""
    drawn = rng.integers(0, count, (rounds, count)) + np.arange(rounds)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=rounds * count).reshape(rounds, count)


def _f1_of_kinds(counts: Counts, which: int) -> Floats:
    """F1 of the flag with bit ``which`` from ``counts`` [rounds, 8] by kind: bit 4 is unsafe."""
    kinds = np.arange(8)
    flagged, positive = (kinds & which) > 0, (kinds & 4) > 0
    hits = counts @ (flagged & positive)
    return _divide(2 * hits, counts @ flagged + counts @ positive)


def _interval(values: Floats) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return NAN, NAN
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _divide(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    result: Floats = np.divide(part, whole, out=np.full(np.shape(part), NAN), where=whole > 0)
    return result


def _share(part: float, whole: float) -> float:
    return part / whole if whole else NAN
