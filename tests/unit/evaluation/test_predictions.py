from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard.errors import InvalidInputError
from guard.evaluation.predictions import Judge, Prediction, PredictionLog, read_predictions

from .helpers import JUDGE, scored


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.jsonl"
    named = Prediction(0.75, {"S2": 0.5, "S1": 0.25}, ("S2",))
    with PredictionLog(path, JUDGE) as log:
        log.add("a", named)
        log.add("b", Prediction(None, error="INPUT_TOO_LONG"))
    judge, predictions = read_predictions(path)
    assert judge == JUDGE
    assert predictions == {"a": named, "b": Prediction(None, error="INPUT_TOO_LONG")}
    assert predictions["a"].leading == "S2"
    assert predictions["b"].leading is None


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_a_kill_cut_off_is_taken_away(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionLog(path, JUDGE) as log:
        log.add("a", scored(0.1, "S1"))
        log.add("b", scored(0.2, "S1"))
    path.write_bytes(path.read_bytes()[:-cut])
    with PredictionLog(path, JUDGE) as log:
        assert list(log.known) == ["a"]
        log.add("c", scored(0.3))
    assert list(read_predictions(path)[1]) == ["a", "c"]


def test_a_header_that_was_cut_off_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"format": "guard')
    with PredictionLog(path, JUDGE) as log:
        log.add("a", scored(0.1))
    assert read_predictions(path) == (JUDGE, {"a": scored(0.1)})


def test_errors_are_tried_again_and_the_later_answer_stands(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionLog(path, JUDGE) as log:
        log.add("a", Prediction(None, error="DEADLINE"))
    with PredictionLog(path, JUDGE) as log:
        assert log.known == {}
        log.add("a", scored(0.4))
    assert read_predictions(path)[1] == {"a": scored(0.4)}


@pytest.mark.parametrize(
    "other", [Judge("fake", "00" * 32, "none", "one_pass"), Judge("fake", "ab" * 32, "none", "exact")]
)
def test_another_model_s_predictions_are_not_mixed_in(tmp_path: Path, other: Judge) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionLog(path, JUDGE) as log:
        log.add("a", scored(0.1))
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="another model's or mode's"), PredictionLog(path, other):
        pass
    assert path.read_bytes() == before


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    second = PredictionLog(path, JUDGE)
    with PredictionLog(path, JUDGE), pytest.raises(InvalidInputError, match="another run"):
        second.__enter__()
    with PredictionLog(path, JUDGE):
        pass


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        '{"score": 0.5, "categories": {}}',
        '{"key": "a", "score": 1.5, "categories": {}}',
        '{"key": "a"}',
        "[]",
    ],
)
def test_a_line_of_another_form_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionLog(path, JUDGE) as log:
        log.add("a", scored(0.1))
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(InvalidInputError, match="line 3 is not one"):
        read_predictions(path)


@pytest.mark.parametrize("data", [b"", b"{}\n", json.dumps({"format": "guardlet-predictions", "version": 2}).encode()])
def test_a_file_of_another_format_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="line 1 is not one"):
        read_predictions(path)
