"""Judge labelled rows with an exported guard bundle: ``python -m training.evaluate BUNDLE ROWS`` (training/README.md).

Every figure comes through ``guard.classifier``, the road that requests take, at threshold 0.5. Prints JSON: aggregate
figures only, never a text.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from guard.classifier import Classifier, ClassifyTask, Mode
from guard.engine.settings import EngineSettings
from guard.errors import ModelOutputError
from guard.runtime import load_guard
from training.data import Row, read_rows
from training.metrics import Floats, interval, quality

_FIGURES = ("f1", "precision", "recall", "false_positive_rate", "auprc")


@dataclass(frozen=True)
class Answer:
    """What the guard said about one row; ``categories`` by falling score."""

    score: float
    categories: tuple[str, ...]
    named: tuple[str, ...] = ()


def judge(classifier: Classifier, rows: Sequence[Row]) -> list[Answer]:
    """One answer a row, in order."""
    answers = []
    for row in rows:
        judgement = classifier.classify(ClassifyTask(row.conversation, row.target))
        answers.append(Answer(judgement.unsafe_score, tuple(category.code for category in judgement.categories)))
    return answers


def exact_mode(classifier: Classifier, rows: Sequence[Row]) -> dict[str, float]:
    """How often the exact mode's decoded list can be read, and names a right category first, on unsafe rows."""
    read = right = 0
    mode: Mode = "exact"
    for row in rows:
        try:
            judgement = classifier.classify(ClassifyTask(row.conversation, row.target, mode=mode))
        except ModelOutputError:
            continue
        read += 1
        right += judgement.categories[0].code in row.categories
    return {"rows": len(rows), "readable": read / len(rows), "first_category_right": right / len(rows)}


def report(rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Any]:
    """Figures over all rows (with 95% intervals) and by target, language and source."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for group in ("all", f"target {row.target.value}", f"lang {row.lang}", f"source {row.source}"):
            groups[group].append(index)
        if row.lang != "en":
            groups["non-English"].append(index)
    unsafe = np.array([row.unsafe for row in rows])
    scores: Floats = np.array([answer.score for answer in answers])
    result: dict[str, Any] = {}
    for group, indexes in sorted(groups.items()):
        figures = quality(unsafe[indexes], scores[indexes])
        result[group] = {name: _rounded(value) for name, value in asdict(figures).items()}
        if group in ("all", "target prompt", "target response", "non-English"):
            result[group]["intervals"] = {
                name: [_rounded(bound) for bound in interval(unsafe[indexes], scores[indexes], attrgetter(name))]
                for name in _FIGURES
            }
    labelled = [index for index, row in enumerate(rows) if row.unsafe and row.categories]
    if labelled:
        right = [answers[index].categories[0] in rows[index].categories for index in labelled]
        result["categories"] = {"rows": len(labelled), "top1": _rounded(float(np.mean(right)))}
    return result


def agreement(rows: Sequence[Row], answers: Sequence[Answer], others: Sequence[Answer]) -> dict[str, Any]:
    """How far ``answers`` are from the ``others`` of a second bundle."""
    ours, theirs = (np.array([answer.score for answer in given]) for given in (answers, others))
    return {
        "verdict_agreement": _rounded(float(np.mean((ours >= 0.5) == (theirs >= 0.5)))),
        "mean_score_difference": _rounded(float(np.mean(np.abs(ours - theirs)))),
        "largest_score_difference": _rounded(float(np.max(np.abs(ours - theirs)))),
        "f1_of_the_other": _rounded(quality(np.array([row.unsafe for row in rows]), theirs).f1),
    }


def main() -> None:
    """Read the arguments, judge, print."""
    parser = argparse.ArgumentParser(description="Quality of an exported guard bundle on labelled rows.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--against", type=Path, help="a second bundle (say, --quantization none): verdict agreement")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--scores", type=Path, help="write ids-free scores, one a line, to this file")
    args = parser.parse_args()
    rows = read_rows(args.rows)
    settings = EngineSettings(threads=args.threads)
    classifier = load_guard(args.bundle, settings)
    answers = judge(classifier, rows)
    result = report(rows, answers)
    result["exact"] = exact_mode(classifier, [row for row in rows if row.unsafe and row.categories][:200])
    classifier.close()
    if args.scores is not None:
        args.scores.write_text("".join(f"{answer.score:.6f}\n" for answer in answers))
    if args.against is not None:
        other = load_guard(args.against, settings)
        result["against"] = agreement(rows, answers, judge(other, rows))
        other.close()
    print(json.dumps(result, indent=1))


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


if __name__ == "__main__":
    main()
