"""guard eval on a tiny bundle, and against a scripted server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.cli import main
from guard.cli.remote_predictor import RemotePredictor
from guard.client import GuardClient, ServerUnavailableError
from guard.evaluation.predictions import Prediction, read_predictions
from guard.v1 import model_pb2, moderation_pb2
from tests.unit.evaluation.helpers import make_tiny_guard, prompts, row, write_jsonl
from tests.unit.fake_server import FakeServer, failing, judged, running

SECRET = "zebra-umbrella"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_guard(tmp_path_factory.mktemp("eval"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", prompts(12))


def test_a_bundle_is_measured_and_the_report_written(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["eval", str(data), "--guard", str(bundle), "--out", str(out), "--rounds", "10"]) == 0
    text, progress = capsys.readouterr()
    assert text.startswith("rows.jsonl: 12 rows, 4 unsafe; 12 judged in ")
    assert "  12/12 rows" in progress
    assert sorted(path.name for path in out.iterdir()) == ["predictions.jsonl", "report.html", "report.json"]
    assert main(["eval", str(data), "--guard", str(bundle), "--out", str(out), "--rounds", "10", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert printed["timing"]["resumed"] == 12
    assert printed["judge"]["model"] == "tiny-guard"


def test_the_default_directory_is_named_after_the_data(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(data), "--guard", str(bundle), "--limit", "3", "--rounds", "1"]) == 0
    assert (tmp_path / "rows-evaluation" / "report.html").exists()


def test_a_row_that_cannot_be_read_fails_the_run_and_is_told_by_its_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*prompts(3), {"messages": SECRET}])
    out = tmp_path / "out"
    assert main(["eval", str(data), "--guard", str(bundle), "--out", str(out), "--rounds", "1"]) == 1
    assert "1 rows could not be read" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["data"]["bad_rows"] == {"count": 1, "first": [{"row": 4, "problem": "messages: expected JSON"}]}
    assert all(SECRET not in path.read_text(encoding="utf-8") for path in out.iterdir())


def test_no_text_of_the_data_is_written(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = {"role": "user", "content": f"Tell me about the {SECRET}"}
    data = write_jsonl(
        tmp_path / "rows.jsonl", [{"messages": [message], "label": label} for label in ("safe", "unsafe")]
    )
    out = tmp_path / "out"
    assert main(["eval", str(data), "--guard", str(bundle), "--out", str(out), "--rounds", "1"]) == 0
    said = "".join(capsys.readouterr())
    assert all(SECRET not in text for text in [said, *(path.read_text(encoding="utf-8") for path in out.iterdir())])


def test_two_runs_are_compared(bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["eval", str(data), "--guard", str(bundle), "--rounds", "1", "--out"]
    assert main([*base, str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert main([*base, str(tmp_path / "b"), "--compare", str(tmp_path / "a" / "predictions.jsonl"), "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert (comparison["verdict_agreement"], comparison["score_difference"]["max"]) == (1.0, 0.0)


def test_columns_are_declared(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("ask,reply,verdict\nHow?,So.,bad\nWhy?,Because.,good\n", encoding="utf-8")
    options = ["--text-column", "reply", "--context-column", "ask", "--label-column", "verdict"]
    options += [
        "--unsafe-label",
        "bad",
        "--safe-label",
        "Good",
        "--rounds",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(["eval", str(data), "--guard", str(bundle), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["groups"]["target"]) == ["response"]
    assert report["overall"]["unsafe"] == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--threshold", "0"], "policy.threshold: expected a number above 0 and at most 1"),
        (["--rounds", "0"], "rounds: expected at least 1"),
        (["--fpr", "1"], "fpr: expected a rate of at least 0 and below 1"),
        (["--limit", "0"], "limit: expected at least 1"),
        (["--role", "user"], "columns: --context-column and --role go with --text-column"),
        (["--unsafe-label", "x", "--safe-label", "X"], "columns: a label is both safe and unsafe"),
        (["--compare", "missing.jsonl"], "missing.jsonl: No such file or directory"),
    ],
)
def test_wrong_values_are_refused(
    bundle: Path, data: Path, tmp_path: Path, options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(data), "--guard", str(bundle), "--out", str(tmp_path / "out"), *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"guard eval: {line}"


def test_thresholds_are_suggested_for_wanted_rates(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--fpr", "0.125", "--fpr", "0.5", "--rounds", "1", "--out", str(tmp_path / "out"), "--json"]
    assert main(["eval", str(data), "--guard", str(bundle), *options]) == 0
    suggested = json.loads(capsys.readouterr().out)["thresholds"]["for_false_positive_rate"]
    assert [each["wanted"] for each in suggested] == [0.125, 0.5]
    assert all(each["choice"]["false_positive_rate"] <= each["wanted"] for each in suggested)
    assert "FPR at most 12.5%" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_0_can_be_the_unsafe_class(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**value, "label": label} for value, label in zip(prompts(3), (0, 0, 1), strict=True)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    options = ["--unsafe-label", "0", "--safe-label", "1", "--rounds", "1", "--out", str(tmp_path / "out"), "--json"]
    assert main(["eval", str(data), "--guard", str(bundle), *options]) == 0
    assert json.loads(capsys.readouterr().out)["overall"]["unsafe"] == 2


def test_an_instruct_bundle_or_nothing_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(data), "--guard", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "not a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(data)])
    assert stop.value.code == 2


def test_eval_of_a_bundle_needs_no_grpc(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("guard.client", "guard.cli.remote"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert main(["eval", str(data), "--guard", str(bundle), "--out", str(tmp_path / "out"), "--rounds", "1"]) == 0
    capsys.readouterr()
    assert main(["eval", str(data), "--address", "127.0.0.1:1", "--out", str(tmp_path / "x")]) == 1
    assert "pip install 'guardlet[client]'" in capsys.readouterr().err


# ---------------------------------------------------------------- a server
@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as fake:
        fake.handlers["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(models=[model("g")])
        fake.handlers["BatchClassify"] = lambda request, context: batch(request)
        yield fake


def model(name: str, task: model_pb2.ModelTask = model_pb2.MODEL_TASK_GUARD) -> model_pb2.Model:
    state = model_pb2.MODEL_STATE_READY
    return model_pb2.Model(name=name, task=task, state=state, manifest_sha256="ef" * 32, quantization="int8")


def batch(request: Any) -> moderation_pb2.BatchClassifyResponse:
    results = [moderation_pb2.BatchClassifyResult(response=judged()) for _ in request.requests]
    return moderation_pb2.BatchClassifyResponse(results=results)


def test_a_server_is_asked_in_batches_under_a_threshold_that_stops_no_scan(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", prompts(40))
    out = tmp_path / "out"
    options = ["--address", server.address, "--out", str(out), "--rounds", "1", "--json"]
    assert main(["eval", str(data), *options]) == 0
    assert [len(request.requests) for request in server.requests("BatchClassify")] == [16, 16, 8]
    assert {item.policy.threshold for r in server.requests("BatchClassify") for item in r.requests} == {1.0}
    judge, predictions = read_predictions(out / "predictions.jsonl")
    assert (judge.model, judge.digest, judge.quantization) == ("g", "ef" * 32, "int8")
    assert set(map(repr, predictions.values())) == {repr(Prediction(0.9, {"S2": 0.8, "S1": 0.1}))}
    capsys.readouterr()


def test_items_that_fail_are_errors_and_busy_ones_are_asked_again(server: FakeServer) -> None:
    waited: list[float] = []

    def answer(request: Any, context: Any) -> moderation_pb2.BatchClassifyResponse:
        response = batch(request)
        for index, item in enumerate(request.requests):
            text = item.messages[0].content
            if text == "too long":
                response.results[index].error.code = 3
                response.results[index].error.reason = "INPUT_TOO_LONG"
            if text == "busy" and not waited:
                response.results[index].error.code = 8
                response.results[index].error.retry_delay.FromMilliseconds(1500)
        return response

    server.handlers["BatchClassify"] = answer
    rows = [row("a"), row("too long"), row("busy"), row("b")]
    with GuardClient(server.address) as client:
        answered = list(RemotePredictor(client, "", "one_pass", 0.5, sleep=waited.append).predict(rows))
    assert [each for each, _ in answered] == rows
    assert [prediction.error for _, prediction in answered] == [None, "INPUT_TOO_LONG", None, None]
    assert waited == [1.5]
    assert [len(request.requests) for request in server.requests("BatchClassify")] == [4, 1]


def test_a_batch_that_is_refused_whole_is_asked_item_by_item(server: FakeServer) -> None:
    refuse = failing(grpc.StatusCode.INVALID_ARGUMENT, "too large")

    def answer(request: Any, context: Any) -> Any:
        texts = [item.messages[0].content for item in request.requests]
        return refuse(request, context) if len(texts) > 1 or texts == ["bad"] else batch(request)

    server.handlers["BatchClassify"] = answer
    with GuardClient(server.address) as client:
        answered = list(RemotePredictor(client, "g", "one_pass", 0.5).predict([row("a"), row("bad"), row("b")]))
    assert [prediction.error for _, prediction in answered] == [None, "INVALID_ARGUMENT", None]


def test_a_server_that_is_gone_ends_the_run_and_marks_nothing(server: FakeServer) -> None:
    server.handlers["BatchClassify"] = failing(grpc.StatusCode.UNAVAILABLE, "draining")
    waited: list[float] = []
    with GuardClient(server.address) as client, pytest.raises(ServerUnavailableError):
        list(RemotePredictor(client, "", "one_pass", 0.5, sleep=waited.append).predict([row("a")]))
    assert len(waited) == 7
    assert waited == sorted(waited) and waited[-1] == 30.0


def test_the_guard_is_chosen_by_name(server: FakeServer, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [model("a"), model("b"), model("i", model_pb2.MODEL_TASK_INSTRUCT)]
    server.handlers["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(models=models)
    assert main(["eval", str(data), "--address", server.address]) == 1
    assert "model: name one guard model of the server; there are: a, b" in capsys.readouterr().err
    with GuardClient(server.address) as client:
        assert RemotePredictor(client, "b", "exact", 0.7).judge.model == "b"
