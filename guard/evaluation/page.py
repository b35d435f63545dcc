"""The report as one HTML page: no script, no font, no image from elsewhere; every plot has its numbers in a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from guard.evaluation import plots

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --soft: #6b6b6b; --rule: #ddd; --main: #2b5d8a;
  --safe: #3a7d44; --unsafe: #b3402a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #161616; --soft: #a5a5a5; --rule: #3a3a3a;
  --main: #7db3e0; --safe: #7cc487; --unsafe: #ec8a75; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
p.soft, caption { color: var(--soft); text-align: left; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th.wide, td.wide { text-align: left; }
.FAIL { color: var(--unsafe); font-weight: 600; } .PASS { color: var(--safe); font-weight: 600; }
.SKIPPED { color: var(--soft); } td.wide { white-space: normal; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.grid { stroke: var(--rule); } .guide { stroke: var(--soft); stroke-dasharray: 4 4; } .dot { fill: var(--main); }
.bar { fill: var(--main); fill-opacity: .5; }
.line { fill: none; stroke: var(--main); stroke-width: 2; } .whisker { stroke: var(--ink); stroke-width: 2; }
rect.safe { fill: var(--main); } rect.unsafe { fill: var(--unsafe); }
"""
_KINDS = {
    "target": "By target",
    "english": "English and other languages",
    "lang": "By language",
    "source": "By source",
}
_COLUMNS = (
    ("F1", "f1"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("FPR", "false_positive_rate"),
    ("AUPRC", "auprc"),
    ("AUROC", "auroc"),
)


def to_html(report: dict[str, Any]) -> str:
    """The page of a report made by ``build_report``."""
    parts = [*_head(report), *_overall(report), *_curves(report), *_thresholds(report)]
    for kind, title in _KINDS.items():
        if kind in report["groups"]:
            parts += _groups(title, report["groups"][kind])
    parts += [*_categories(report["categories"]), *_comparison(report["comparison"]), *_bad_rows(report["data"])]
    return document(f"Evaluation of {report['judge']['model']}", parts)


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page around ``parts``."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], prose: bool = False) -> str:
    """A table of plain texts; the first cell of each row is its header. With ``prose`` the last column is to be read,
    not compared: set left, and broken into lines.
    """
    kinds = [*[""] * (len(header) - 1), ' class="wide"' if prose else ""]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, header, strict=True))
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        f"{''.join(f'<td{kind}>{escape(cell)}</td>' for kind, cell in zip(kinds[1:], rest, strict=True))}</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(report: dict[str, Any]) -> list[str]:
    data, judge, timing = report["data"], report["judge"], report["timing"]
    sampled = data["sampled"]
    resumed = f", {timing['resumed']} more came from an earlier run" if timing["resumed"] else ""
    lines = [
        f"{data['name']} (SHA-256 {data['sha256'][:16]}…): {data['rows']} rows, {data['distinct']} distinct",
        f"model {judge['model']} ({judge['quantization']}, {judge['mode']}), manifest {judge['digest'][:16]}…",
        f"threshold {report['threshold']:g}; {timing['seconds']:.0f} s for {timing['judged']} rows{resumed}",
    ]
    if sampled is not None:
        lines.append(f"a sample of {sampled['limit']} rows, seed {sampled['seed']}")
    errors = sum(report["errors"].values())
    if errors:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report["errors"].items()))
        lines.append(f"{errors} rows got no verdict and count as wrong: {reasons}")
    if data["bad_rows"]["count"]:
        lines.append(f"{data['bad_rows']['count']} rows could not be read and are not in any figure (listed below)")
    return [f'<p class="soft">{"<br>".join(map(escape, lines))}</p>']


def _overall(report: dict[str, Any]) -> list[str]:
    overall = report["overall"]
    rows = [(name, number(overall[key]), bounds(overall["intervals"][key])) for name, key in _COLUMNS]
    calibration = report["calibration"]
    rows += [("accuracy", number(overall["accuracy"]), ""), ("ECE", number(calibration["ece"]), "")]
    rows.append(("Brier score", number(calibration["brier"]), ""))
    confusion = [
        ("labelled unsafe", str(overall["true_positives"]), str(overall["false_negatives"])),
        ("labelled safe", str(overall["false_positives"]), str(overall["true_negatives"])),
    ]
    return [
        "<h2>All rows</h2>",
        '<div class="plots">',
        table("Unsafe is the positive class", ("figure", "value", "95% interval"), rows),
        table("Rows", ("", "judged unsafe", "judged safe"), confusion),
        "</div>",
    ]


def _curves(report: dict[str, Any]) -> list[str]:
    points, overall = report["curves"]["precision_recall"], report["overall"]
    reliability = [(each["mean_score"], each["unsafe_share"]) for each in report["calibration"]["bins"] if each["rows"]]
    histogram = report["curves"]["histogram"]
    drawn = [
        (
            "Precision and recall",
            plots.curve(
                f"Precision against recall over all thresholds; the dot is threshold {report['threshold']:g}",
                "recall",
                "precision",
                [(p["recall"], p["precision"]) for p in points if p["recall"] is not None],
                dots=[(overall["recall"], overall["precision"])] if overall["f1"] else [],
            ),
        ),
        (
            "Reliability",
            plots.curve(
                "Share of unsafe rows against the mean score, in ten bins; on the diagonal scores are probabilities",
                "mean score",
                "share unsafe",
                reliability,
                dots=reliability,
                diagonal=True,
            ),
        ),
        (
            "Scores",
            plots.histogram(
                "How the scores of safe and of unsafe rows are spread",
                "score",
                histogram["edges"],
                [(name, histogram[name]) for name in ("safe", "unsafe")],
            ),
        ),
    ]
    figures = [f"<figure><figcaption>{escape(name)}</figcaption>{plot}</figure>" for name, plot in drawn]
    rows = [
        (
            f"{each['low']:.1f} to {each['high']:.1f}",
            str(each["rows"]),
            number(each["mean_score"]),
            number(each["unsafe_share"]),
        )
        for each in report["calibration"]["bins"]
    ]
    bins_table = table("Reliability by bin of the score", ("score", "rows", "mean score", "share unsafe"), rows)
    return [
        "<h2>Curves</h2>",
        f'<div class="plots">{"".join(figures)}</div>',
        f"<details><summary>Numbers of the reliability diagram</summary>{bins_table}</details>",
    ]


def _thresholds(report: dict[str, Any]) -> list[str]:
    chosen = [("best F1", report["thresholds"]["best_f1"])]
    chosen += [
        (f"FPR at most {100 * each['wanted']:g}%", each["choice"])
        for each in report["thresholds"]["for_false_positive_rate"]
    ]
    keys = ("f1", "precision", "recall", "false_positive_rate")
    rows = [
        (name, f"{choice['threshold']:.4f}", *(number(choice[key]) for key in keys))
        if choice is not None
        else (name, "none", "", "", "", "")
        for name, choice in chosen
    ]
    header = ("for", "threshold", "F1", "precision", "recall", "FPR")
    note = "Chosen on these very rows, so expect a little less on others"
    return ["<h2>Suggested thresholds</h2>", table(note, header, rows)]


def _groups(title: str, groups: dict[str, dict[str, Any]]) -> list[str]:
    header = ("", "rows", "unsafe", *(name for name, _ in _COLUMNS), "errors")
    rows = [
        (
            name,
            str(group["rows"]),
            str(group["unsafe"]),
            *(number(group[key]) for _, key in _COLUMNS),
            str(group["errors"]),
        )
        for name, group in groups.items()
    ]
    measured = [
        (name, group["f1"], None if None in group["intervals"]["f1"] else tuple(group["intervals"]["f1"]))
        for name, group in groups.items()
        if group["unsafe"]
    ]
    plot = plots.bars(f"F1, {title.lower()}, with 95% intervals", measured)
    return [
        f"<h2>{escape(title)}</h2>",
        f"<figure><figcaption>F1 of groups with unsafe rows</figcaption>{plot}</figure>",
        table("All figures; a dash where a group lacks a class", header, rows),
    ]


def _categories(categories: dict[str, Any]) -> list[str]:
    if not categories["rows"]:
        return []
    confusion = categories["confusion"]
    each = [
        (code, str(value["rows"]), number(value["recall"]), number(value["leading_right"]))
        for code, value in categories["each"].items()
    ]
    matrix = [(code, *map(str, counts)) for code, counts in confusion["rows"].items()]
    share = number(categories["leading_right"])
    return [
        "<h2>By category</h2>",
        f"<p>{categories['rows']} unsafe rows have categories; the leading one is among them in {share} of them.</p>",
        table("Unsafe rows by label", ("label", "rows", "recall", "leading category right"), each),
        table(
            "Labels (rows) against the leading category of rows that were flagged (columns)",
            ("label", *confusion["columns"]),
            matrix,
        ),
    ]


def _comparison(comparison: dict[str, Any] | None) -> list[str]:
    if comparison is None:
        return []
    other, difference = comparison["judge"], comparison["score_difference"]
    rows = [
        ("rows that both judged", str(comparison["rows"])),
        ("verdict agreement", number(comparison["verdict_agreement"])),
        ("only this one flags", str(comparison["only_this_flags"])),
        ("only the other flags", str(comparison["only_the_other_flags"])),
        ("leading category agreement", number(comparison["leading_category_agreement"])),
        ("score difference: mean", number(difference["mean"])),
        ("score difference: 99th percentile", number(difference["p99"])),
        ("score difference: largest", number(difference["max"])),
        ("F1", number(comparison["f1"])),
        ("F1 of the other", number(comparison["f1_of_the_other"])),
        ("F1 change", number(comparison["f1_change"])),
        ("F1 change, 95% interval", bounds(comparison["f1_change_interval"])),
    ]
    name = f"{other['model']} ({other['quantization']}, {other['mode']}), manifest {other['digest'][:16]}…"
    return ["<h2>Against other predictions</h2>", table(name, ("", ""), rows)]


def _bad_rows(data: dict[str, Any]) -> list[str]:
    bad = data["bad_rows"]
    if not bad["count"]:
        return []
    rows = [(str(row["row"]), row["problem"]) for row in bad["first"]]
    caption = f"{bad['count']} rows; the first {len(rows)}"
    return ["<h2>Rows that could not be read</h2>", table(caption, ("row", "problem"), rows, prose=True)]


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def bounds(interval: Sequence[float | None]) -> str:
    """``"0.812 to 0.834"``, one number when both are equal, or a dash."""
    low, high = interval
    if low == high:
        return number(low)
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
