"""Choose the thresholds of a screen: what a small guard may answer itself before a large one is asked.

Run guard eval on the same DATA with both guards first; this command reads what it left in the two directories. For each
wanted share it prints the threshold, how many rows the screen would answer, and what that does to the verdicts, the F1
and the time. Choose on rows like those that the server will see; guard serve takes the numbers as screen_safe_below and
screen_unsafe_above.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guard.cli.columns import add_column_options, columns_of
from guard.cli.output import add_json_option
from guard.errors import InvalidInputError
from guard.evaluation.evaluate import PREDICTIONS_FILE, REPORT_FILE
from guard.evaluation.predictions import Prediction, read_predictions
from guard.evaluation.rows import read_data
from guard.evaluation.screen import CONFIDENCE, Choice, Pairs, choose

_WANTED = (0.001, 0.002, 0.005, 0.01, 0.02)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("data", type=Path, metavar="DATA", help="the labelled rows that both guards have judged")
    for name, which in (("screen", "small"), ("guard", "large")):
        what = f"what guard eval --out left of the {which} guard"
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument(
        "--missed",
        type=float,
        action="append",
        metavar="P",
        help="at most this share of the rows that the large guard flags may be answered SAFE; repeatable"
        f" ({', '.join(f'{share:g}' for share in _WANTED)})",
    )
    parser.add_argument(
        "--overblocked",
        type=float,
        metavar="P",
        help="let the screen say UNSAFE as well, on this share of the rows that the large guard passes at most",
    )
    parser.add_argument("--threshold", type=float, default=0.5, metavar="P", help="of the policy (%(default)s)")
    add_column_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each wanted share."""
    wanted = _WANTED if args.missed is None else tuple(args.missed)
    for name, share in (*(("missed", share) for share in wanted), ("overblocked", args.overblocked or 0.0)):
        if not 0.0 <= share < 1.0:  # also true for NaN
            raise InvalidInputError(name, "expected a share of at least 0 and below 1")
    if not 0.0 < args.threshold < 1.0:
        raise InvalidInputError("threshold", "expected a number above 0 and below 1")
    rows = read_data(args.data, columns_of(args)).rows
    pairs = Pairs.of(rows, _predictions(args.screen), _predictions(args.guard), args.threshold)
    if not len(pairs.unsafe):
        raise InvalidInputError("data", "both guards have judged none of these rows")
    choices = [choose(pairs, share, args.overblocked, args.threshold) for share in wanted]
    times = _seconds(args.screen), _seconds(args.guard)
    print(json.dumps(_as_json(pairs, choices, *times)) if args.json else "\n".join(_lines(pairs, choices, *times)))
    return 0


def _predictions(directory: Path) -> dict[str, Prediction]:
    judge, predictions = read_predictions(directory / PREDICTIONS_FILE)
    if judge.mode != "one_pass":
        raise InvalidInputError(directory.name, f"was judged in the mode {judge.mode}, expected one_pass")
    return predictions


def _seconds(directory: Path) -> float:
    """Seconds a row of the run that wrote the report there; NaN when it judged none itself."""
    try:
        timing = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))["timing"]
        return float(timing["seconds"]) / timing["judged"] if timing["judged"] else math.nan
    except (ValueError, KeyError, TypeError):
        raise InvalidInputError(directory.name, f"{REPORT_FILE} is no report of guard eval") from None


def _as_json(pairs: Pairs, choices: Sequence[Choice], screen_s: float, large_s: float) -> dict[str, Any]:
    found = [{**asdict(choice), "row_s": choice.time_s(screen_s, large_s)} for choice in choices]
    counts = {"rows": len(pairs.unsafe), "flagged": int(pairs.flagged.sum()), "confidence": CONFIDENCE}
    times = {"screen_row_s": screen_s, "guard_row_s": large_s}
    return {**counts, **_without_nan(times), "choices": [_without_nan(choice) for choice in found]}


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in values.items()}


def _lines(pairs: Pairs, choices: Sequence[Choice], screen_s: float, large_s: float) -> list[str]:
    lines = [
        f"{len(pairs.unsafe)} rows that both guards have judged; the large one flags {int(pairs.flagged.sum())}",
        "  wanted  screen_safe_below  screen_unsafe_above  answered  missed (new rows)     overblocked   F1 (before)"
        "    time",
    ]
    for choice in choices:
        time = choice.time_s(screen_s, large_s) / large_s
        lines.append(
            f"  {choice.wanted:<8.2%}{choice.safe_below:<19.6g}{choice.unsafe_above:<21.6g}{choice.answered:<10.1%}"
            f"{choice.missed:>4} {choice.missed_share:.2%} (<{choice.missed_bound:.2%})"
            f"{choice.overblocked:>8} {choice.overblocked_share:.2%}"
            f"   {choice.f1:.3f} ({choice.f1_large:.3f})   {'–' if math.isnan(time) else f'{time:.0%}'}"
        )
    lines.append(f"new rows: at most so many of the same kind, with {CONFIDENCE:.0%} confidence")
    lines.append(
        f"time: of the large guard alone; a row takes {_ms(large_s)}, the screen {_ms(screen_s)} (guard eval's runs)"
    )
    return lines


def _ms(seconds: float) -> str:
    return "an unknown time" if math.isnan(seconds) else f"{seconds * 1000:.0f} ms"
