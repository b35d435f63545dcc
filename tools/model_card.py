"""Write a model card's figures from reports of ``guard eval``, so that every figure in a card comes from a command.

The first report is of the model as it ships. Others are of the same rows and were made with ``--compare`` (other
quantizations, the exact mode): each gives a line about agreement; or of other rows: each gives a line about those. The
lines go between the two marks in the card. With ``--check`` nothing is written: each line that the reports give must be
in the card, in order, so the first report alone can be checked too.

exit status: 0 written, or the card says what the reports say; 1 not so; 2 wrong options.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.evaluation.page import number
from guard.taxonomy import HAZARDS

CARD = Path("adapters/embedded-guard/README.md")
BEGIN = "<!-- figures: written by tools/model_card.py, not by hand -->"
END = "<!-- end of figures -->"
#: Column title to figure.
_COLUMNS = {
    "F1": "f1",
    "precision": "precision",
    "recall": "recall",
    "FPR": "false_positive_rate",
    "AUPRC": "auprc",
}
_GROUPS = {"prompts": ("target", "prompt"), "responses": ("target", "response"), "non-English": ("english", "other")}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

Report = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT", help="report.json files of guard eval")
    parser.add_argument("--card", type=Path, default=CARD, metavar="FILE", help="(%(default)s)")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="D",
        help="with --check: how far numbers may be apart; other processors round differently (%(default)s)",
    )
    args = parser.parse_args(arguments)
    try:
        card = args.card.read_text(encoding="utf-8")
        lines = figures([json.loads(path.read_text(encoding="utf-8")) for path in args.reports])
        if args.check:
            missing = differences(card, lines, args.tolerance)
            print("\n".join(f"not in the card: {line}" for line in missing) or f"{args.card}: as measured")
            return 1 if missing else 0
        args.card.write_text(rewritten(card, lines), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{args.card}: {error}", file=sys.stderr)
        return 1
    return 0


def rewritten(card: str, lines: Iterable[str]) -> str:
    """``card`` with ``lines`` between the marks. Raises ValueError without them."""
    before, _, after = _parts(card)
    return f"{before}{BEGIN}\n\n{chr(10).join(lines)}\n\n{END}{after}"


def differences(card: str, lines: Iterable[str], tolerance: float) -> list[str]:
    """Those of ``lines`` that do not stand between the marks in their order. Raises ValueError without marks."""
    written = _parts(card)[1].splitlines()
    place, missing = 0, []
    for line in lines:
        found = next((i for i in range(place, len(written)) if _same(line, written[i], tolerance)), None)
        if found is None:
            missing.append(line)
        else:
            place = found + 1
    return missing


def _parts(card: str) -> tuple[str, str, str]:
    before, begin, rest = card.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"has no {BEGIN} before an {END}")
    return before, between, after


def _same(one: str, other: str, tolerance: float) -> bool:
    """Equal but for numbers that are at most ``tolerance`` apart (and a rounding error of the subtraction)."""
    if _NUMBER.sub("0", one) != _NUMBER.sub("0", other):
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(abs(float(a) - float(b)) <= tolerance + 1e-9 for a, b in pairs)


def figures(reports: Sequence[Report]) -> list[str]:
    """The card's lines; ``reports[0]`` is the model as it ships."""
    first = reports[0]
    data = first["data"]["sha256"]
    same = [report for report in reports if report["data"]["sha256"] == data]
    others = [report for report in reports if report["data"]["sha256"] != data]
    lines = [*_head(first), "", *_main_table(first), "", *_more(first), *_agreements(same), *_other_rows(others)]
    if first["categories"]["rows"]:
        lines += ["", "### By category", "", *_categories(first["categories"])]
    for kind, title in (("lang", "By language"), ("source", "By source")):
        if kind in first["groups"]:
            lines += ["", f"### {title}", "", *_table(first["groups"][kind].items())]
    return lines


def _head(report: Report) -> list[str]:
    data, judge, bootstrap = report["data"], report["judge"], report["bootstrap"]
    sampled = data["sampled"]
    part = "" if sampled is None else f" (a sample, seed {sampled['seed']})"
    errors = sum(report["errors"].values())
    return [
        f"`{data['name']}`, SHA-256 `{data['sha256'][:16]}…`: {data['rows']} rows{part}, {errors} without a verdict.",
        f"Judged by {judge['model']}, {judge['quantization']}, {judge['mode']}, at threshold {report['threshold']:g}."
        f" Unsafe is positive; 95% bootstrap intervals of {bootstrap['rounds']} resamples in brackets.",
    ]


def _main_table(report: Report) -> list[str]:
    groups = {name: report["groups"].get(kind, {}).get(of) for name, (kind, of) in _GROUPS.items()}
    named = [("all", report["overall"]), *((name, group) for name, group in groups.items() if group is not None)]
    return _table(named, intervals=True)


def _table(groups: Iterable[tuple[str, Mapping[str, Any]]], intervals: bool = False) -> list[str]:
    def cell(group: Mapping[str, Any], key: str) -> str:
        low, high = group["intervals"][key]
        known = intervals and low is not None and high is not None
        return f"{number(group[key])} ({low:.3f}–{high:.3f})" if known else number(group[key])

    rows = [
        (name, f"{group['rows']} / {group['unsafe']}", *(cell(group, key) for key in _COLUMNS.values()))
        for name, group in groups
    ]
    return list(_markdown(("rows", "n / unsafe", *_COLUMNS), rows))


def _more(report: Report) -> list[str]:
    categories, calibration = report["categories"], report["calibration"]
    return [
        f"- Calibration: ECE {number(calibration['ece'])}, Brier score {number(calibration['brier'])};"
        f" AUROC {number(report['overall']['auroc'])}.",
        f"- Categories: the leading one is among the row's labels for {number(categories['leading_right'])} of"
        f" {categories['rows']} unsafe rows that have labels.",
        *(
            f"- Threshold {choice['threshold']:.3f} keeps FPR at {wanted:.2f} or less on these rows:"
            f" recall {number(choice['recall'])}, F1 {number(choice['f1'])}."
            for wanted, choice in ((e["wanted"], e["choice"]) for e in report["thresholds"]["for_false_positive_rate"])
            if choice is not None and wanted >= 0.05
        ),
    ]


def _agreements(reports: Sequence[Report]) -> list[str]:
    """A line for each report that was compared with another run."""
    header = (
        "run",
        "against",
        "rows",
        "same verdict",
        "same leading category",
        "score apart: mean",
        "largest",
        "without verdict",
        "F1",
        "change of F1",
    )
    rows = []
    for report in reports:
        compared = report["comparison"]
        if compared is None:
            continue
        low, high = compared["f1_change_interval"]
        rows.append(
            (
                _run(report["judge"]),
                _run(compared["judge"]),
                str(compared["rows"]),
                f"{compared['verdict_agreement']:.4f}",
                number(compared["leading_category_agreement"]),
                f"{compared['score_difference']['mean']:.4f}",
                number(compared["score_difference"]["max"]),
                str(compared["failed"]),
                number(compared["f1"]),
                f"{compared['f1_change']:+.4f} ({low:+.4f} to {high:+.4f})",
            )
        )
    return ["", "Other runs over the same rows:", "", *_markdown(header, rows)] if rows else []


def _run(judge: Mapping[str, Any]) -> str:
    precision = "float32" if judge["quantization"] == "none" else judge["quantization"]
    return precision if judge["mode"] == "one_pass" else f"{precision}, {judge['mode']} mode"


def _other_rows(reports: Sequence[Report]) -> list[str]:
    named = [(f"`{report['data']['name']}` ({_run(report['judge'])})", report["overall"]) for report in reports]
    return ["", "Other rows:", "", *_table(named, intervals=True)] if named else []


def _categories(categories: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            f"{code} {HAZARDS[code].name}" if code in HAZARDS else code,
            str(each["rows"]),
            number(each["recall"]),
            number(each["leading_right"]),
        )
        for code, each in categories["each"].items()
    ]
    return list(_markdown(("label", "unsafe rows", "recall", "leading category right"), rows))


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    sys.exit(main())
