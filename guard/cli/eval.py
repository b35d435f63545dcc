"""Measure a guard on labelled rows: figures with intervals, calibration, thresholds, and a report to read.

DATA is .jsonl, .csv, .tsv (each also .gz) or .parquet. Its columns are messages (a list of {"role", "content"}; the
last one is judged) and label (safe or unsafe), and, when they are there, target (prompt or response), categories, lang
and source; options name others. Writes report.json, report.html and predictions.jsonl to the output directory; a run
that was killed goes on where it stopped. No text of the data is written anywhere.

exit status: 0 every row was read and judged, 1 not so (the report, if there is one, says which), 2 wrong options.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guard.cli import EXIT_FAILED
from guard.cli.columns import add_column_options, columns_of
from guard.cli.credentials import add_credential_options
from guard.cli.output import add_json_option
from guard.engine.settings import EngineSettings
from guard.errors import UnsupportedError
from guard.evaluation.evaluate import PAGE_FILE, EvaluationRequest, evaluate, is_complete
from guard.evaluation.page import bounds, number
from guard.evaluation.progress import RateLine, duration
from guard.evaluation.report import WANTED_FPRS
from guard.evaluation.rows import read_data
from guard.evaluation.runner import LocalPredictor, Predictor
from guard.runtime import load_guard


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("data", type=Path, metavar="DATA", help="labelled rows")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--guard", type=Path, metavar="DIR", help="judge with this bundle, in this process")
    asked.add_argument("--address", metavar="HOST:PORT", help="judge with this server")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (DATA's name and -evaluation)")
    parser.add_argument("--restart", action="store_true", help="judge again what an earlier run in --out has judged")
    parser.add_argument("--threshold", type=float, default=0.5, metavar="P", help="flagged at this score (%(default)s)")
    parser.add_argument(
        "--fpr",
        type=float,
        action="append",
        metavar="P",
        help="suggest a threshold for this false-positive rate at most; repeatable (0.01, 0.02, 0.05, 0.1)",
    )
    parser.add_argument("--mode", choices=("one_pass", "exact"), default="one_pass", help="(%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="a random sample of N rows")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sample and bootstrap (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1000, metavar="N", help="of the bootstrap (%(default)s)")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="another run's predictions.jsonl: agreement with it"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="with --guard (the container's CPUs)")
    add_credential_options(parser)
    parser.add_argument("--model", default="", metavar="NAME", help="with --address: which guard, if it has several")
    parser.add_argument(
        "--timeout", type=float, default=300, metavar="S", help="with --address: of a batch (%(default)s)"
    )
    add_column_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Judges, writes the report, and prints the main figures."""
    data = read_data(args.data, columns_of(args))
    request = EvaluationRequest(
        data=data,
        out=args.out or Path(f"{data.name.split('.')[0]}-evaluation"),
        threshold=args.threshold,
        limit=args.limit,
        seed=args.seed,
        rounds=args.rounds,
        wanted_fprs=WANTED_FPRS if args.fpr is None else tuple(args.fpr),
        compare=args.compare,
        restart=args.restart,
    )
    with _predictor(args) as predictor:
        report = evaluate(request, predictor, RateLine(sys.stderr))
    print(json.dumps(report, ensure_ascii=False, allow_nan=False) if args.json else describe(report, request.out))
    return 0 if is_complete(report) else EXIT_FAILED


@contextmanager
def _predictor(args: argparse.Namespace) -> Iterator[Predictor]:
    if args.guard is not None:
        classifier = load_guard(args.guard, EngineSettings(threads=args.threads))
        try:
            yield LocalPredictor(classifier, args.mode, args.threshold)
        finally:
            classifier.close()
        return
    try:
        from guard.cli.connection import connect
        from guard.cli.remote_predictor import RemotePredictor
    except ModuleNotFoundError as error:
        needs = f"--address needs the Python package {error.name}; pip install 'guardlet[client]'"
        raise UnsupportedError(needs) from None
    with connect(args) as client:
        yield RemotePredictor(client, args.model, args.mode, args.threshold)


def describe(report: dict[str, Any], out: Path) -> str:
    """The main figures as lines."""
    overall, timing = report["overall"], report["timing"]
    lines = [
        f"{report['data']['name']}: {overall['rows']} rows, {overall['unsafe']} unsafe;"
        f" {timing['judged']} judged in {duration(timing['seconds'])}",
    ]
    for name, key in (("F1", "f1"), ("precision", "precision"), ("recall", "recall"), ("FPR", "false_positive_rate")):
        lines.append(f"  {name:10} {number(overall[key])}   {bounds(overall['intervals'][key])}")
    for name in ("auprc", "auroc"):
        lines.append(f"  {name.upper():10} {number(overall[name])}   {bounds(overall['intervals'][name])}")
    lines.append(f"  {'ECE':10} {number(report['calibration']['ece'])}")
    comparison = report["comparison"]
    if comparison is not None:
        lines.append(
            f"  verdicts agree with {comparison['judge']['model']} ({comparison['judge']['quantization']}) on"
            f" {number(comparison['verdict_agreement'])} of {comparison['rows']} rows"
        )
    errors, bad = sum(report["errors"].values()), report["data"]["bad_rows"]["count"]
    if errors:
        lines.append(f"  {errors} rows got no verdict and count as wrong")
    if bad:
        lines.append(f"  {bad} rows could not be read; the report says which")
    return "\n".join([*lines, f"  {out / PAGE_FILE}"])
