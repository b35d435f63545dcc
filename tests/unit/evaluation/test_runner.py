from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.classifier import Classifier
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.settings import EngineSettings
from guard.errors import UnavailableError
from guard.evaluation.evaluate import EvaluationRequest, evaluate
from guard.evaluation.predictions import Prediction, PredictionLog, read_predictions
from guard.evaluation.progress import RateLine, duration
from guard.evaluation.rows import Row
from guard.evaluation.runner import LocalPredictor, run
from guard.runtime import load_guard

from .helpers import JUDGE, FakePredictor, data_set, prompts, row, scored, write_jsonl


def quiet(done: int, total: int, resumed: int) -> None:
    pass


def test_each_distinct_row_is_asked_once(tmp_path: Path) -> None:
    predictor = FakePredictor(lambda text: scored(0.25))
    rows = [row("a"), row("b"), row("a", unsafe=True)]
    with PredictionLog(tmp_path / "p.jsonl", JUDGE) as log:
        done = run(rows, predictor, log, quiet)
    assert predictor.asked == ["a", "b"]
    assert done.predictions == {rows[0].key: scored(0.25), rows[1].key: scored(0.25)}


def test_a_run_that_broke_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def breaks(text: str) -> Prediction:
        if text == "c":
            raise UnavailableError("the server left")
        return scored(0.25)

    rows = [row(text) for text in "abcd"]
    with pytest.raises(UnavailableError), PredictionLog(tmp_path / "p.jsonl", JUDGE) as log:
        run(rows, FakePredictor(breaks), log, quiet)
    second = FakePredictor(lambda text: scored(0.5))
    seen: list[tuple[int, int, int]] = []
    with PredictionLog(tmp_path / "p.jsonl", JUDGE) as log:
        done = run(rows, second, log, lambda *counts: seen.append(counts))
    assert second.asked == ["c", "d"]
    assert done.resumed == 2
    assert [done.predictions[each.key].score for each in rows] == [0.25, 0.25, 0.5, 0.5]
    assert seen == [(2, 4, 2), (3, 4, 2), (4, 4, 2)]


def test_restart_and_limit(tmp_path: Path) -> None:
    data = data_set(*(row(str(index)) for index in range(20)))
    first, second = FakePredictor(lambda text: scored(0.25)), FakePredictor(lambda text: scored(0.5))
    evaluate(EvaluationRequest(data, tmp_path / "out", limit=5, rounds=2), first, quiet)
    report = evaluate(EvaluationRequest(data, tmp_path / "out", limit=5, rounds=2, restart=True), second, quiet)
    assert first.asked == second.asked
    assert len(second.asked) == 5
    assert report["data"]["sampled"] == {"limit": 5, "seed": 0}
    assert report["timing"]["resumed"] == 0


@pytest.fixture(scope="module")
def classifier(tiny_guard_bundle: Path) -> Iterator[Classifier]:
    classifier = load_guard(tiny_guard_bundle, EngineSettings(threads=1))
    yield classifier
    classifier.close()


def test_a_bundle_answers_in_order(classifier: Classifier) -> None:
    predictor = LocalPredictor(classifier, "one_pass", 0.5)
    rows = [row(f"question number {index}") for index in range(10)]
    answered = list(predictor.predict(rows))
    assert [each for each, _ in answered] == rows
    for each, prediction in answered:
        ((_, alone),) = predictor.predict([each])
        assert alone == prediction
        assert prediction.score is not None and 0 < prediction.score < 1
        assert list(prediction.categories.values()) == sorted(prediction.categories.values(), reverse=True)
    assert predictor.judge.model == "tiny-guard"
    assert predictor.judge.digest == classifier.bundle.digest


def test_what_the_guard_refuses_is_an_error_of_its_row(classifier: Classifier) -> None:
    long = "word " * 20_000
    talk = Conversation((Message(Role.USER, "a"), Message(Role.USER, "b")))
    rows = [row("fine"), Row("k", 2, talk, Target.PROMPT, True, (), "", ""), row(long * 8), row("fine too")]
    errors = [prediction.error for _, prediction in LocalPredictor(classifier, "one_pass", 0.5).predict(rows)]
    assert errors == [None, "INVALID_INPUT", "INPUT_TOO_LONG", None]


def test_an_exact_answer_that_cannot_be_read_is_an_error(classifier: Classifier) -> None:
    rows = [row(f"question number {index}") for index in range(20)]
    predictions = [prediction for _, prediction in LocalPredictor(classifier, "exact", 0.5).predict(rows)]
    for prediction in predictions:  # random weights rarely write an answer that can be read
        assert (prediction.score is None) == (prediction.error == "MODEL_OUTPUT_UNREADABLE")
    assert any(prediction.error for prediction in predictions)


def test_a_killed_evaluation_goes_on_and_ends_as_if_it_had_not_been(tiny_guard_bundle: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", prompts(700))
    command = [sys.executable, "-m", "guard.cli", "eval", str(data), "--guard", str(tiny_guard_bundle)]
    command += ["--threads", "1", "--rounds", "20", "--out"]
    log = tmp_path / "killed" / "predictions.jsonl"
    process = subprocess.Popen([*command, str(log.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 20):
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    left = log.read_bytes()
    log.write_bytes(left + b'{"key":"torn')
    judged = left[: left.rfind(b"\n")].count(b"\n")
    assert 19 <= judged < 700
    again = subprocess.run([*command, str(log.parent)], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"{judged} of them from an earlier run" in again.stderr
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, timeout=120)
    assert whole.returncode == 0, whole.stderr
    assert read_predictions(log) == read_predictions(tmp_path / "whole" / "predictions.jsonl")
    assert log.read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_with_rate_and_time_left() -> None:
    now = [0.0]
    stream = Terminal()
    line = RateLine(stream, clock=lambda: now[0])
    line(10, 110, 10)
    now[0] = 2.0
    line(30, 110, 10)
    now[0] = 2.1
    line(31, 110, 10)  # too soon to show
    now[0] = 10.0
    line(110, 110, 10)
    shown = [part.rstrip() for part in stream.getvalue().split("\r")]
    assert shown == [
        "",
        "  [#...................]  10/110 rows, 10 of them from an earlier run",
        "  [#####...............]  30/110 rows, 10.0 a second, 0:08 left",
        "  [####################]  110/110 rows, 10.0 a second",
    ]
    assert stream.getvalue().endswith("\n")


def test_progress_in_a_log_is_a_line_a_minute() -> None:
    now = [0.0]
    stream = io.StringIO()
    line = RateLine(stream, clock=lambda: now[0])
    for done in range(121):
        now[0] = float(done)
        line(done, 240, 0)
    assert stream.getvalue().splitlines() == [
        "  0/240 rows",
        "  60/240 rows, 1.0 a second, 3:00 left",
        "  120/240 rows, 1.0 a second, 2:00 left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
