from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import guard.evaluation
from guard.evaluation.page import to_html
from guard.evaluation.predictions import Prediction
from guard.evaluation.report import build_report, compare, describe_data
from guard.evaluation.rows import BadRow, DataSet, Row

from .helpers import JUDGE, row, scored

SCHEMA = json.loads((Path(guard.evaluation.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))
SECRET = "zebra-umbrella"
ERROR = Prediction(None, error="MODEL_OUTPUT_UNREADABLE")


def report_of(pairs: list[tuple[Row, Prediction]], threshold: float = 0.5, **more: Any) -> dict[str, Any]:
    rows = tuple(each for each, _ in pairs)
    data = DataSet("rows.jsonl", "cd" * 32, rows, (BadRow(9, "label: missing"),))
    value = build_report(
        rows,
        {each.key: prediction for each, prediction in pairs},
        judge=JUDGE,
        data=describe_data(data, rows, None),
        timing={"seconds": 1.5, "judged": len(rows), "resumed": 0},
        threshold=threshold,
        rounds=20,
        **more,
    )
    jsonschema.validate(value, SCHEMA)
    return value


PAIRS = [
    (row(f"{SECRET} 1", unsafe=True, categories=("S1",), lang="en", source="x"), scored(0.9, "S1", "S2")),
    (row(f"{SECRET} 2", unsafe=True, categories=("S2", "S10"), lang="de", source="x"), scored(0.8, "S1", "S2")),
    (row(f"{SECRET} 3", unsafe=True, categories=("S10",), lang="de"), scored(0.1, "S10")),
    (row(f"{SECRET} 4", unsafe=True, categories=("S10",), lang="de"), ERROR),
    (row(f"{SECRET} 5", lang="en"), scored(0.2, "S1")),
    (row(f"{SECRET} 6", lang="en"), ERROR),
]


@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
def test_an_error_is_wrong_at_every_threshold(threshold: float) -> None:
    report = report_of([PAIRS[3], PAIRS[5]], threshold)
    overall = report["overall"]
    assert (overall["false_negatives"], overall["false_positives"], overall["errors"]) == (1, 1, 2)
    assert (overall["f1"], overall["auroc"]) == (0.0, 0.0)
    assert report["errors"] == {"MODEL_OUTPUT_UNREADABLE": 2}
    assert report["calibration"]["ece"] is None


def test_groups_are_those_of_the_data() -> None:
    groups = report_of(PAIRS)["groups"]
    assert set(groups) == {"target", "lang", "source", "english"}
    assert {name: group["rows"] for name, group in groups["lang"].items()} == {"de": 3, "en": 3}
    assert {name: group["rows"] for name, group in groups["source"].items()} == {"(none)": 4, "x": 2}
    assert {name: group["rows"] for name, group in groups["english"].items()} == {"English": 3, "other": 3}
    assert groups["lang"]["de"]["recall"] == pytest.approx(1 / 3, abs=1e-6)
    assert groups["lang"]["de"]["false_positive_rate"] is None
    assert set(report_of([(row("a", lang=""), scored(0.5))])["groups"]) == {"target"}


def test_categories_by_hand() -> None:
    categories = report_of(PAIRS)["categories"]
    assert categories["rows"] == 4
    assert categories["leading_right"] == 0.5  # rows 1 and 3
    assert categories["confusion"] == {
        "columns": ["S1", "S2", "S10", "safe", "error"],
        "rows": {"S1": [1, 0, 0, 0, 0], "S2": [1, 0, 0, 0, 0], "S10": [1, 0, 0, 1, 1]},
    }
    assert categories["each"]["S10"] == {"rows": 3, "recall": 0.333333, "leading_right": 0.333333}


def test_a_suggested_threshold_is_exact() -> None:
    score = 0.1234567890123
    report = report_of([(row("a", unsafe=True), scored(score)), (row("b"), scored(0.1))])
    assert report["thresholds"]["best_f1"]["threshold"] == score
    assert report["thresholds"]["for_false_positive_rate"][0] == {
        "wanted": 0.01,
        "choice": {
            "threshold": score,
            "f1": 1.0,
            "precision": 1.0,
            "recall": 1.0,
            "false_positive_rate": 0.0,
        },
    }


def test_the_curve_is_short_and_keeps_its_ends() -> None:
    pairs = [(row(str(index), unsafe=index % 3 == 0), scored(index / 1000)) for index in range(1000)]
    report = report_of(pairs)
    curve = report["curves"]["precision_recall"]
    assert len(curve) == 200
    assert (curve[0]["threshold"], curve[-1]["threshold"], curve[-1]["recall"]) == (0.999, 0.0, 1.0)
    histogram = report["curves"]["histogram"]
    assert sum(histogram["safe"]) + sum(histogram["unsafe"]) == 1000


def test_comparison_by_hand() -> None:
    rows = [row(text, unsafe=text in "ab") for text in "abcde"]
    ours = dict(
        zip([each.key for each in rows], [scored(0.9, "S1"), scored(0.4), scored(0.1), ERROR, scored(0.6)], strict=True)
    )
    theirs = dict(
        zip([each.key for each in rows[:4]], [scored(0.8, "S1"), scored(0.6), scored(0.1), ERROR], strict=True)
    )
    value = compare(rows, ours, theirs, JUDGE, 0.5)
    assert (value["rows"], value["rows_without_the_other"], value["failed"]) == (4, 1, 1)
    assert value["verdict_agreement"] == 0.5  # a and c; a row that failed is not agreed on
    assert (value["only_this_flags"], value["only_the_other_flags"]) == (0, 1)
    assert value["score_difference"]["mean"] == pytest.approx(0.1)
    assert value["score_difference"]["max"] == pytest.approx(0.2)
    # a is found by both, b by the other only, d is an error and so a false alarm of both.
    assert (value["f1"], value["f1_of_the_other"]) == (0.5, 0.8)
    assert value["f1_change"] == pytest.approx(-0.3)
    report_of(PAIRS, comparison=value)


def test_a_comparison_without_common_rows_has_no_figures() -> None:
    value = compare([row("a")], {row("a").key: scored(0.5)}, {}, JUDGE, 0.5)
    assert (value["rows"], value["verdict_agreement"], value["f1_change"]) == (0, None, None)
    to_html(report_of(PAIRS, comparison=value))


class Page(HTMLParser):
    """Checks that elements nest, and collects what could reach outside the page."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.outside += [name for name, _ in attrs if name in ("src", "href", "srcset", "onclick")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    comparison = compare(
        [each for each, _ in PAIRS], {e.key: p for e, p in PAIRS}, {e.key: p for e, p in PAIRS}, JUDGE, 0.5
    )
    text = to_html(report_of(PAIRS, comparison=comparison))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert not {"script", "link", "img", "iframe"} & set(page.seen)
    assert "url(" not in text and "@import" not in text
    assert page.seen.count("svg") == 7  # three curves, bars by target, English or not, language, source
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        element = ElementTree.fromstring(svg)
        assert element.get("role") == "img"
        assert element.get("aria-label") == element.findtext("title")
        for each in element.iter():
            numbers = [float(each.get(name, "0")) for name in ("x", "y", "cx", "cy", "width", "height")]
            assert all(0 <= number < 2000 for number in numbers)


def test_names_are_escaped_and_no_text_is_told() -> None:
    report = report_of([(row(SECRET, unsafe=True, source="<b>&"), scored(0.9, "S1"))])
    text = to_html(report)
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text
    assert SECRET not in text and SECRET not in json.dumps(report)


@pytest.mark.parametrize("unsafe", [True, False])
def test_data_of_one_class_has_a_report(unsafe: bool) -> None:
    report = report_of([(row("a", unsafe=unsafe), scored(0.7)), (row("b", unsafe=unsafe), scored(0.2))])
    assert report["overall"]["auroc"] is None
    to_html(report)
