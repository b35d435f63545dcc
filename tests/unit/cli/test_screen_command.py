"""guard screen: from two evaluations of the same rows to thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard.cli import main
from guard.evaluation.evaluate import EvaluationRequest, evaluate
from guard.evaluation.predictions import Judge, Prediction
from guard.evaluation.rows import read_data
from tests.unit.evaluation.helpers import FakePredictor, prompts, scored, write_jsonl


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", prompts(30))


def evaluated(data: Path, out: Path, shift: float, mode: str = "one_pass") -> Path:
    """Every third row is unsafe, as in ``prompts``; the guard is sure of it by ``shift`` less than it could be."""

    def answer(text: str) -> Prediction:
        return scored(1.0 - shift if int(text.split()[1]) % 3 == 0 else shift)

    predictor = FakePredictor(answer, Judge(out.name, out.name * 8, "none", mode))
    evaluate(EvaluationRequest(read_data(data), out, rounds=2), predictor, lambda done, rows, resumed: None)
    return out


def test_it_prints_what_each_wanted_share_comes_to(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screen, large = evaluated(data, tmp_path / "small", 0.2), evaluated(data, tmp_path / "large", 0.1)
    command = ["screen", str(data), "--screen", str(screen), "--guard", str(large), "--missed", "0.01"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "30 rows that both guards have judged; the large one flags 10"
    assert lines[2].split()[:4] == ["1.00%", "0.5", "1", "66.7%"]
    assert main([*command, "--overblocked", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (choice,) = found["choices"]
    assert (found["rows"], found["flagged"]) == (30, 10)
    assert (choice["safe_below"], choice["unsafe_above"], choice["answered"]) == (0.5, 0.5, 1.0)
    assert choice["row_s"] == pytest.approx(found["screen_row_s"])  # all rows are answered by it


def test_resumed_runs_have_no_time(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        directory = evaluated(data, tmp_path / "small", 0.2)
    assert main(["screen", str(data), "--screen", str(directory), "--guard", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["screen_row_s"], found["choices"][0]["row_s"]) == (None, None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["--missed", "1"], "missed: expected"),
        (["--overblocked", "nan"], "overblocked: expected"),
        (["--threshold", "1"], "threshold: expected"),
    ],
)
def test_shares_are_checked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], problem: str
) -> None:
    directory = str(evaluated(data, tmp_path / "small", 0.2))
    assert main(["screen", str(data), "--screen", directory, "--guard", directory, *changes]) == 1
    assert problem in capsys.readouterr().err


def test_other_rows_and_other_modes_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, exact = evaluated(data, tmp_path / "small", 0.2), evaluated(data, tmp_path / "exact", 0.2, "exact")
    assert main(["screen", str(data), "--screen", str(exact), "--guard", str(directory)]) == 1
    assert "expected one_pass" in capsys.readouterr().err
    value = {"messages": [{"role": "user", "content": "Something else."}], "label": "safe"}
    other = write_jsonl(tmp_path / "other.jsonl", [value])
    assert main(["screen", str(other), "--screen", str(directory), "--guard", str(directory)]) == 1
    assert "judged none" in capsys.readouterr().err
    (directory / "report.json").write_text("{}")
    assert main(["screen", str(data), "--screen", str(directory), "--guard", str(directory)]) == 1
    assert "no report of guard eval" in capsys.readouterr().err
