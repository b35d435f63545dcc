"""One evaluation from data to report files; the command and the qualification of a checkpoint both come here."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import InvalidInputError
from guard.evaluation.page import to_html
from guard.evaluation.predictions import PredictionLog, read_predictions
from guard.evaluation.report import WANTED_FPRS, build_report, compare, describe_data
from guard.evaluation.rows import DataSet, sample
from guard.evaluation.runner import Predictor, Progress, run
from guard.policy import Policy

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class EvaluationRequest:
    """``out`` gets the three files. ``limit`` rows are drawn with ``seed``; the bootstrap of ``rounds`` uses it too.

    A threshold is suggested for each of ``wanted_fprs``. ``compare`` is another run's predictions file. ``restart``
    judges again what an earlier run in ``out`` has judged.
    Raises InvalidInputError naming what is no threshold or count.
    """

    data: DataSet
    out: Path
    threshold: float = 0.5
    limit: int | None = None
    seed: int = 0
    rounds: int = 1000
    wanted_fprs: tuple[float, ...] = WANTED_FPRS
    compare: Path | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        Policy(threshold=self.threshold)
        if self.rounds < 1:
            raise InvalidInputError("rounds", "expected at least 1")
        if not all(0 <= rate < 1 for rate in self.wanted_fprs):  # also false for NaN
            raise InvalidInputError("fpr", "expected a rate of at least 0 and below 1")


def evaluate(request: EvaluationRequest, predictor: Predictor, progress: Progress) -> dict[str, Any]:
    """Judge the rows (those that an earlier run in ``out`` has not), write the report, and return it.

    Raises InvalidInputError for an ``out`` with another model's predictions, and what ``predictor`` raises; what was
    judged until then stays for the next run.
    """
    data, out = request.data, request.out
    other = None if request.compare is None else read_predictions(request.compare)
    rows = data.rows if request.limit is None else sample(data.rows, request.limit, request.seed)
    out.mkdir(parents=True, exist_ok=True)
    if request.restart:
        (out / PREDICTIONS_FILE).unlink(missing_ok=True)
    with PredictionLog(out / PREDICTIONS_FILE, predictor.judge) as log:
        done = run(rows, predictor, log, progress)
    sampled = None if request.limit is None else {"limit": request.limit, "seed": request.seed}
    report = build_report(
        rows,
        done.predictions,
        judge=done.judge,
        data=describe_data(data, rows, sampled),
        timing={
            "seconds": done.seconds,
            "judged": len(done.predictions) - done.resumed,
            "resumed": done.resumed,
        },
        threshold=request.threshold,
        rounds=request.rounds,
        seed=request.seed,
        wanted_fprs=request.wanted_fprs,
        comparison=None if other is None else compare(rows, done.predictions, other[1], other[0], request.threshold),
    )
    write_whole(out / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(out / PAGE_FILE, to_html(report))
    return report


def is_complete(report: dict[str, Any]) -> bool:
    """Whether every row of the data was read and judged."""
    return not report["errors"] and not report["data"]["bad_rows"]["count"]


def write_whole(path: Path, text: str) -> None:
    """Replace ``path``: whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
