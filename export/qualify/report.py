"""The report of a qualification: report.json, and the same as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from export.qualify.lines import Line
from export.qualify.published import published_scores
from guard.bundle.manifest import Source, Task
from guard.evaluation.evaluate import PAGE_FILE, REPORT_FILE, write_whole
from guard.evaluation.page import bounds, document, number, table

FORMAT = "guardlet-qualification"
FORMAT_VERSION = 1


def write_report(
    out: Path, source: Source | None, task: Task, lines: Sequence[Line], figures: Mapping[str, Any]
) -> None:
    """Write both files to ``out``; ``source`` is None when the checkpoint could not be opened."""
    published = [asdict(score) for score in published_scores().values()] if task == "guard" else []
    report = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "task": task,
        "source": None if source is None else asdict(source),
        "passed": all(line.status != "FAIL" for line in lines),
        "lines": [asdict(line) for line in lines],
        "profiles": figures,
        "published": published,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(out / REPORT_FILE, text)
    write_whole(out / PAGE_FILE, _page(report))


def _page(report: dict[str, Any]) -> str:
    source = report["source"]
    statuses = [line["status"] for line in report["lines"]]
    said = ", ".join(f"{statuses.count(status)} {status}" for status in ("PASS", "FAIL", "SKIPPED"))
    outcome = '<span class="PASS">No line failed</span>' if report["passed"] else '<span class="FAIL">FAILED</span>'
    parts = [f"<p>{outcome}: {escape(said)}</p>", _lines(report["lines"]), *_measured(report["profiles"])]
    if report["published"]:
        parts += _published(report["published"])
    if source is not None:
        files = sorted(source["files"].items())
        parts += [
            "<h2>Source</h2>",
            table(f"{source['kind']}: {source['name']}", ("file", "SHA-256"), files, prose=True),
        ]
    name = "a checkpoint" if source is None else source["name"]
    return document(f"Qualification of {name} as {report['task']}", parts)


def _measured(profiles: Mapping[str, Any]) -> list[str]:
    """The evaluations of the user's rows."""
    rows = [
        (
            name,
            str(value["evaluation"]["rows"]),
            number(value["evaluation"]["f1"]),
            bounds(value["evaluation"]["f1_interval"]),
            *(number(value["evaluation"][key]) for key in ("false_positive_rate", "auprc", "ece")),
        )
        for name, value in profiles.items()
        if "evaluation" in value
    ]
    header = ("profile", "rows", "F1", "95% interval", "FPR", "AUPRC", "ECE")
    return ["<h2>Measured on your rows</h2>", table("Threshold 0.5", header, rows)] if rows else []


def _published(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (each["benchmark"], each["judged"], bounds(each["f1"]), number(each["false_positive_rate"]), each["source"])
        for each in scores
    ]
    header = ("benchmark", "judged", "F1", "FPR", "source")
    caption = "Llama Guard 3 1B, as others publish it; sources differ in thresholds, subsets and label rules"
    return ["<h2>Published</h2>", table(caption, header, rows, prose=True)]


def _lines(lines: Sequence[dict[str, Any]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(line["check"])}</th><td>{escape(line["profile"] or "")}</td>'
        f'<td class="{line["status"]}">{line["status"]}</td><td class="wide">{escape(line["detail"])}</td></tr>'
        for line in lines
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("check", "profile", "result"))
    head += '<th scope="col" class="wide">detail</th>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
