"""A model card's figures are those of the reports, and a card that says otherwise is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guard.evaluation.predictions import Judge, Prediction
from guard.evaluation.report import build_report, compare, describe_data
from guard.evaluation.rows import DataSet, Row
from tests.unit.evaluation.helpers import row, scored
from tools.model_card import BEGIN, CARD, END, differences, figures, main

ROOT = Path(__file__).resolve().parent.parent.parent
INT8 = Judge("embedded-guard", "ab" * 32, "int8", "one_pass")
FLOAT32 = replace(INT8, quantization="none", digest="cd" * 32)
ROWS = tuple(
    row(f"text {index}", unsafe=index % 3 == 0, categories=("S1",) * (index % 3 == 0), lang=("en", "de")[index % 2])
    for index in range(30)
)


def report(
    rows: tuple[Row, ...], judge: Judge, scores: dict[str, Prediction], other: dict[str, Prediction] | None = None
) -> dict[str, Any]:
    digest = "ef" * 32 if rows is ROWS else "01" * 32
    comparison = None if other is None else compare(rows, scores, other, FLOAT32, 0.5)
    data = describe_data(DataSet("dev.jsonl", digest, rows, ()), rows, None)
    timing = {"seconds": 1.0, "judged": len(rows), "resumed": 0}
    return build_report(rows, scores, judge=judge, data=data, timing=timing, rounds=20, comparison=comparison)


def predictions(*wrong: int) -> dict[str, Prediction]:
    return {
        each.key: scored(0.9 if each.unsafe != (index in wrong) else 0.1, "S1", "S2") for index, each in enumerate(ROWS)
    }


def written(tmp_path: Path, *values: dict[str, Any]) -> list[str]:
    paths = []
    for index, value in enumerate(values):
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_text(json.dumps(value), encoding="utf-8")
    return [str(path) for path in paths]


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Card\n\nBefore.\n\n{BEGIN}\nstale\n{END}\n\nAfter.\n", encoding="utf-8")
    return path


def test_the_card_says_what_the_reports_say(card: Path, tmp_path: Path) -> None:
    first = report(ROWS, INT8, predictions(1), other=predictions())
    exact = report(ROWS, replace(INT8, mode="exact"), predictions(1), other=predictions(1))
    probes = report(ROWS[:6], INT8, predictions())
    options = [*written(tmp_path, first, exact, probes), "--card", str(card)]
    assert main(options) == 0
    text = card.read_text(encoding="utf-8")
    assert text.startswith("# Card\n\nBefore.\n") and text.endswith("\n\nAfter.\n") and "stale" not in text
    # By hand: 10 of 30 rows are unsafe, all found, and row 1, which is in German, is flagged wrongly.
    assert "| all | 30 / 10 | 0.952 (" in text
    assert "| non-English | 15 / 5 | 0.909 (" in text
    assert "| de | 15 / 5 | 0.909 | 0.833 | 1.000 | 0.100 |" in text
    assert "| int8 | float32 | 30 | 0.9667 | 1.000 |" in text
    assert "| int8, exact mode | float32 | 30 | 1.0000 |" in text
    assert "| S1 Violent Crimes | 10 | 1.000 | 1.000 |" in text
    assert "| `dev.jsonl` (int8) | 6 / 2 | 1.000" in text
    assert main([*options, "--check"]) == 0


def test_one_report_checks_its_part_and_a_wrong_figure_is_named(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = report(ROWS, INT8, predictions(1), other=predictions())
    exact = report(ROWS, replace(INT8, mode="exact"), predictions(1), other=predictions())
    assert main([*written(tmp_path, first, exact), "--card", str(card)]) == 0
    alone = report(ROWS, INT8, predictions(1))
    assert main([*written(tmp_path, alone), "--card", str(card), "--check"]) == 0
    capsys.readouterr()
    card.write_text(card.read_text(encoding="utf-8").replace("0.909 | 0.833", "0.919 | 0.833"), encoding="utf-8")
    assert main([*written(tmp_path, alone), "--card", str(card), "--check"]) == 1
    assert "not in the card: | de | 15 / 5 | 0.909 |" in capsys.readouterr().out
    assert main([*written(tmp_path, alone), "--card", str(card), "--check", "--tolerance", "0.01"]) == 0


def test_tolerance_is_for_numbers_alone() -> None:
    card = f"{BEGIN}\n| en | 30 / 10 | 0.952 |\n{END}"
    assert differences(card, ["| en | 30 / 10 | 0.953 |"], 0.001) == []
    assert differences(card, ["| en | 30 / 10 | 0.955 |"], 0.001) == ["| en | 30 / 10 | 0.955 |"]
    assert differences(card, ["| en | 31 / 10 | 0.952 |"], 0.001) == ["| en | 31 / 10 | 0.952 |"]
    assert differences(card, ["| de | 30 / 10 | 0.952 |"], 1.0) == ["| de | 30 / 10 | 0.952 |"]


def test_a_card_without_marks_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"{END}{BEGIN}", encoding="utf-8")
    assert main([*written(tmp_path, report(ROWS, INT8, predictions())), "--card", str(card)]) == 1
    assert "has no <!-- figures" in capsys.readouterr().err
    assert card.read_text(encoding="utf-8") == f"{END}{BEGIN}"


def test_a_missing_report_is_named(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json"), "--card", str(card)]) == 1
    assert "none.json" in capsys.readouterr().err


def test_rows_of_one_language_have_no_other() -> None:
    english = tuple(each for each in ROWS if each.lang == "en")
    lines = figures([report(english, INT8, predictions())])
    assert not any("non-English" in line for line in lines)


def test_the_shipped_card_has_its_marks() -> None:
    card = (ROOT / CARD).read_text(encoding="utf-8")
    assert differences(card, ["### By category", "### By language", "### By source"], 0) == []
