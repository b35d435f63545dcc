"""From rows and predictions to a report: a plain JSON value of a stable form (``report.schema.json``), figures only."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from guard.evaluation.metrics import (
    SHARES,
    Bools,
    Floats,
    best_f1,
    calibration,
    f1_change,
    figures,
    intervals,
    precision_recall,
    threshold_for_fpr,
)
from guard.evaluation.predictions import Judge, Prediction
from guard.evaluation.rows import DataSet, Row

FORMAT = "guardlet-evaluation"
FORMAT_VERSION = 1
#: False-positive rates for which a threshold is suggested.
WANTED_FPRS = (0.01, 0.02, 0.05, 0.10)
#: Groups of one kind in a report, the largest first; bad rows that are listed; points of a curve.
MAX_GROUPS = 100
MAX_BAD_ROWS = 100
_CURVE_POINTS = 200
_HISTOGRAM_BINS = 20
_DECIMALS = 6


@dataclass(frozen=True)
class Answers:
    """Predictions in the order of rows. An error has the score that is wrong at every threshold: 0 for an unsafe row, 1
    for a safe one.
    """

    unsafe: Bools
    scores: Floats
    failed: Bools

    @classmethod
    def of(cls, rows: Sequence[Row], predictions: Mapping[str, Prediction]) -> Answers:
        """Every row must have a prediction."""
        unsafe = np.array([row.unsafe for row in rows], bool)
        given = [predictions[row.key].score for row in rows]
        failed = np.array([score is None for score in given], bool)
        scores = np.array(
            [float(not row.unsafe) if s is None else s for row, s in zip(rows, given, strict=True)], float
        )
        return cls(unsafe, scores, failed)

    def part(self, indexes: Sequence[int]) -> Answers:
        """The rows at ``indexes``."""
        chosen = np.array(indexes, np.int64)
        return Answers(self.unsafe[chosen], self.scores[chosen], self.failed[chosen])


def build_report(
    rows: Sequence[Row],
    predictions: Mapping[str, Prediction],
    *,
    judge: Judge,
    data: Mapping[str, Any],
    timing: Mapping[str, Any],
    threshold: float = 0.5,
    rounds: int = 1000,
    seed: int = 0,
    wanted_fprs: Sequence[float] = WANTED_FPRS,
    comparison: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of ``rows``. ``data`` (``describe_data``), ``timing`` and ``comparison`` (``compare``) go in as given.

    ``rounds`` and ``seed`` are the bootstrap's. Shares that are not defined are null.
    """
    answers = Answers.of(rows, predictions)
    every = range(len(rows))
    report = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "data": data,
        "judge": asdict(judge),
        "timing": timing,
        "threshold": threshold,
        "bootstrap": {"rounds": rounds, "seed": seed, "level": 0.95},
        "errors": dict(Counter(p.error for row in rows if (p := predictions[row.key]).error is not None)),
        "overall": _figures(answers, every, threshold, rounds, seed),
        "groups": {kind: _groups(answers, names, threshold, rounds, seed) for kind, names in _kinds(rows).items()},
        "categories": _categories(rows, predictions, threshold),
        "calibration": _calibration(answers),
        "thresholds": _thresholds(answers, wanted_fprs),
        "curves": {"precision_recall": _curve(answers), "histogram": _histogram(answers)},
        "comparison": comparison,
    }
    result: dict[str, Any] = _json(report)
    return result


def describe_data(data: DataSet, rows: Sequence[Row], sampled: Mapping[str, int] | None) -> dict[str, Any]:
    """The report's ``data``: ``rows`` are those evaluated; ``sampled`` has limit and seed when they are not all."""
    return {
        "name": data.name,
        "sha256": data.sha256,
        "rows": len(rows),
        "distinct": len({row.key for row in rows}),
        "sampled": sampled,
        "bad_rows": {
            "count": len(data.bad),
            "first": [{"row": row.number, "problem": row.problem} for row in data.bad[:MAX_BAD_ROWS]],
        },
    }


def compare(
    rows: Sequence[Row],
    predictions: Mapping[str, Prediction],
    other: Mapping[str, Prediction],
    other_judge: Judge,
    threshold: float,
) -> dict[str, Any]:
    """How far ``predictions`` are from those of ``other_judge``, on the rows that both have judged.

    A row on which either failed is not agreed on. Score differences are over rows that both answered.
    """
    both = [row for row in rows if row.key in other]
    ours, theirs = Answers.of(both, predictions), Answers.of(both, other)
    failed = ours.failed | theirs.failed
    flagged, other_flagged = ours.scores >= threshold, theirs.scores >= threshold
    agreed = (flagged == other_flagged) & ~failed
    difference = np.abs(ours.scores - theirs.scores)[~failed]
    leading = [predictions[row.key].leading == other[row.key].leading for row in both]
    change, change_interval = f1_change(ours.unsafe, flagged, other_flagged)
    result: dict[str, Any] = _json(
        {
            "judge": asdict(other_judge),
            "rows": len(both),
            "rows_without_the_other": len(rows) - len(both),
            "failed": int(failed.sum()),
            "verdict_agreement": float(agreed.mean()) if both else math.nan,
            "only_this_flags": int((flagged & ~other_flagged & ~failed).sum()),
            "only_the_other_flags": int((~flagged & other_flagged & ~failed).sum()),
            "leading_category_agreement": float(np.mean(leading)) if both else math.nan,
            "score_difference": {
                "mean": float(difference.mean()) if len(difference) else math.nan,
                "p99": float(np.percentile(difference, 99)) if len(difference) else math.nan,
                "max": float(difference.max()) if len(difference) else math.nan,
            },
            "f1": figures(ours.unsafe, ours.scores, threshold).f1,
            "f1_of_the_other": figures(theirs.unsafe, theirs.scores, threshold).f1,
            "f1_change": change,
            "f1_change_interval": change_interval,
        }
    )
    return result


def _kinds(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The name of each row's group, by kind; kinds that the data does not have are left out."""
    kinds = {
        "target": [row.target.value for row in rows],
        "lang": [row.lang for row in rows],
        "source": [row.source for row in rows],
    }
    english = [row.lang and ("English" if row.lang.casefold().split("-")[0] == "en" else "other") for row in rows]
    if {"English", "other"} <= set(english):  # languages with few rows each say more together
        kinds["english"] = english
    return {kind: names for kind, names in kinds.items() if any(names)}


def _groups(
    answers: Answers, names: Sequence[str], threshold: float, rounds: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Figures of each group, by name; the largest MAX_GROUPS."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        members[name or "(none)"].append(index)
    largest = sorted(members, key=lambda name: (-len(members[name]), name))[:MAX_GROUPS]
    return {name: _figures(answers, members[name], threshold, rounds, seed) for name in sorted(largest)}


def _figures(answers: Answers, indexes: Sequence[int], threshold: float, rounds: int, seed: int) -> dict[str, Any]:
    part = answers.part(indexes)
    value = asdict(figures(part.unsafe, part.scores, threshold))
    bounds = intervals(part.unsafe, part.scores, threshold, rounds=rounds, seed=seed)
    return {**value, "errors": int(part.failed.sum()), "intervals": {name: bounds[name] for name in SHARES}}


def _categories(rows: Sequence[Row], predictions: Mapping[str, Prediction], threshold: float) -> dict[str, Any]:
    """Labelled categories of unsafe rows against the leading one. A row with several labels counts once for each."""
    labelled = [(row, predictions[row.key]) for row in rows if row.unsafe and row.categories]
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    right: Counter[str] = Counter()
    for row, prediction in labelled:
        for code in row.categories:
            outcomes[code][_outcome(prediction, threshold)] += 1
            right[code] += prediction.leading in row.categories
    codes = sorted({*outcomes, *(code for seen in outcomes.values() for code in seen)} - {"safe", "error"}, key=_order)
    columns = [*codes, "safe", "error"]
    return {
        "rows": len(labelled),
        "leading_right": _mean([prediction.leading in row.categories for row, prediction in labelled]),
        "each": {
            code: {
                "rows": outcomes[code].total(),
                "recall": 1 - (outcomes[code]["safe"] + outcomes[code]["error"]) / outcomes[code].total(),
                "leading_right": right[code] / outcomes[code].total(),
            }
            for code in codes
            if code in outcomes
        },
        "confusion": {
            "columns": columns,
            "rows": {code: [outcomes[code][column] for column in columns] for code in codes if code in outcomes},
        },
    }


def _outcome(prediction: Prediction, threshold: float) -> str:
    if prediction.score is None:
        return "error"
    return prediction.leading or "(none)" if prediction.score >= threshold else "safe"


def _order(code: str) -> tuple[int, str]:
    """S2 before S10."""
    return len(code), code


def _calibration(answers: Answers) -> dict[str, Any]:
    """Over the rows that were answered: an error has no probability."""
    return asdict(calibration(answers.unsafe[~answers.failed], answers.scores[~answers.failed]))


def _thresholds(answers: Answers, wanted_fprs: Sequence[float]) -> dict[str, Any]:
    best = best_f1(answers.unsafe, answers.scores)
    wanted = [(rate, threshold_for_fpr(answers.unsafe, answers.scores, rate)) for rate in wanted_fprs]
    return {
        "best_f1": None if best is None else asdict(best),
        "for_false_positive_rate": [
            {"wanted": rate, "choice": None if choice is None else asdict(choice)} for rate, choice in wanted
        ],
    }


def _curve(answers: Answers) -> list[dict[str, float]]:
    """At most _CURVE_POINTS points, evenly spread over the distinct scores, both ends kept."""
    thresholds, precision, recall = precision_recall(answers.unsafe, answers.scores)
    chosen = np.unique(np.linspace(0, len(thresholds) - 1, min(_CURVE_POINTS, len(thresholds))).round().astype(int))
    return [
        {"threshold": float(thresholds[i]), "precision": float(precision[i]), "recall": float(recall[i])}
        for i in chosen
    ]


def _histogram(answers: Answers) -> dict[str, Any]:
    edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
    answered = ~answers.failed
    counts = {
        name: np.histogram(answers.scores[answered & kind], edges)[0].tolist()
        for name, kind in (("safe", ~answers.unsafe), ("unsafe", answers.unsafe))
    }
    return {"edges": edges.tolist(), **counts}


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan


def _json(value: Any) -> Any:
    """Plain JSON: six decimals, null for NaN, lists for tuples. A threshold stays exact: rounded, it is another one."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, _DECIMALS)
    if isinstance(value, Mapping):
        return {key: item if key == "threshold" else _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value
