"""guard qualify on tiny random checkpoints: what passes, what fails, and what says that it needs a trained model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint import open_checkpoint
from export.memory import available_bytes, needed_bytes
from export.qualify import Line, QualifyRequest, qualify
from export.qualify.checks import check_answer_tokens
from export.qualify.guard_checks import AGREEMENT, highest_share
from export.qualify.lines import Lines
from export.qualify.probes import probe_data
from export.qualify.published import TOLERANCE, published_scores
from export.qualify.run import PROFILES
from export.spec import ModelSpec
from export.synthetic import LLAMA_3_2_1B, TINY, TINY_LLAMA_3, make_checkpoint
from guard.bundle.guard_format import GuardFormat
from guard.cli import main
from guard.errors import InvalidInputError, ParityError
from guard.evaluation.rows import read_data
from guard.prompt import LLAMA_GUARD_3_1B
from tests.unit.evaluation.helpers import prompts, write_jsonl


def by_check(lines: tuple[Line, ...]) -> dict[tuple[str, str | None], Line]:
    return {(line.check, line.profile): line for line in lines}


@pytest.fixture(scope="module")
def report(tiny: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """float32 and int8 of a random guard, with rows; the report it wrote."""
    root = tmp_path_factory.mktemp("qualify")
    data = write_jsonl(root / "rows.jsonl", prompts(30))
    options = ["--adapter", str(tiny_adapter), "--data", str(data), "--benchmark", "toxicchat", "--limit", "20"]
    options += ["--profile", "int8", "--profile", "none", "--out", str(root / "out")]
    assert main(["qualify", str(tiny), *options]) == 1  # random weights
    value: dict[str, Any] = json.loads((root / "out" / "report.json").read_text(encoding="utf-8"))
    assert (root / "out" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    return value


def found(report: dict[str, Any], check: str, profile: str | None = None) -> dict[str, Any]:
    (line,) = [line for line in report["lines"] if (line["check"], line["profile"]) == (check, profile)]
    return dict(line)


def test_float32_comes_first_whatever_the_order_of_the_options(report: dict[str, Any]) -> None:
    assert [line["profile"] for line in report["lines"] if line["check"] == "export"] == ["none", "int8"]


def test_what_random_weights_can_pass_passes(report: dict[str, Any]) -> None:
    for check in ("checkpoint", "answer tokens"):
        assert found(report, check)["status"] == "PASS"
    assert found(report, "prompts against the chat template")["status"] == "SKIPPED"  # came with the adapter
    for check in ("export", "logits against the numpy reference", "loads", "evaluation"):
        assert found(report, check, "none")["status"] == "PASS", check


def test_a_random_guard_fails_what_needs_a_trained_one_and_the_line_says_so(report: dict[str, Any]) -> None:
    line = found(report, "one pass against exact", "none")
    assert line["status"] == "FAIL"
    assert line["needs_trained"] is True
    assert "random weights fail this by nature" in line["detail"]
    assert report["passed"] is False


def test_figures_stand_beside_what_is_published(report: dict[str, Any]) -> None:
    evaluation = report["profiles"]["none"]["evaluation"]
    assert evaluation["rows"] == 20
    assert report["profiles"]["int8"]["evaluation"]["comparison"]["rows"] == 20
    assert report["profiles"]["none"]["evaluation"]["comparison"] is None
    assert {score["benchmark"] for score in report["published"]} == set(published_scores())
    assert "0.453 published" in found(report, "published scores", "none")["detail"]
    assert "of 20 verdicts" in found(report, "verdicts against float32", "int8")["detail"]


def test_untrained_skips_those_lines_and_passes(
    tiny: Path, tiny_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--adapter", str(tiny_adapter), "--profile", "none", "--untrained", "--out", str(tmp_path / "q")]
    assert main(["qualify", str(tiny), *options]) == 0
    text = capsys.readouterr().out
    assert "SKIPPED  tells safe from unsafe (none): needs a trained model, and this one was declared untrained" in text
    assert "PASS     export (none): " in text
    assert text.splitlines()[-1] == f"no line failed; {tmp_path / 'q' / 'report.html'}"


def test_again_with_another_adapter_judges_anew(
    tiny: Path, tiny_adapter: Path, adapter_copy: Path, tmp_path: Path
) -> None:
    data = read_data(write_jsonl(tmp_path / "rows.jsonl", prompts(5)))
    request = QualifyRequest(str(tiny), tmp_path / "q", adapter=tiny_adapter, profiles=("none",), data=data)
    assert by_check(qualify(request).lines)["evaluation", "none"].status == "PASS"
    config = json.loads((adapter_copy / "adapter_config.json").read_text())
    (adapter_copy / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 3 * config["lora_alpha"]}))
    again = qualify(replace(request, adapter=adapter_copy))
    assert by_check(again.lines)["evaluation", "none"].status == "PASS"


def test_an_instruct_checkpoint(tiny: Path, tmp_path: Path) -> None:
    request = QualifyRequest(str(tiny), tmp_path / "q", task="instruct", profiles=("none",))
    lines = by_check(qualify(request).lines)
    assert lines["prompts against the chat template", None].status == "PASS"
    assert lines["logits against the numpy reference", "none"].status == "PASS"
    answers = lines["answers plain questions", "none"]
    assert (answers.status, answers.needs_trained) == ("FAIL", True)
    assert ("answer tokens", None) not in lines


def test_the_answer_tokens_of_llama_guard(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", TINY_LLAMA_3, guard=True)))
    status, detail = check_answer_tokens(checkpoint, LLAMA_GUARD_3_1B)
    assert status == "PASS"
    assert "unsafe 'unsafe', S1 '1'" in detail and "S13 '13'" in detail
    answer = LLAMA_GUARD_3_1B.answer
    for wrong, problem in [
        (replace(answer, safe=answer.unsafe), "two labels have the same token"),
        (replace(answer, unsafe=TINY_LLAMA_3.vocab_size), "outside the vocabulary"),
        (replace(answer, categories={**answer.categories, "S1": 25}), "S1"),
    ]:
        status, detail = check_answer_tokens(checkpoint, _with(LLAMA_GUARD_3_1B, wrong))
        assert status == "FAIL"
        assert problem in detail


def _with(guard: GuardFormat, answer: Any) -> GuardFormat:
    return replace(guard, answer=answer)


def test_a_template_that_differs_fails_its_line_and_every_export(tiny_guard: Path, tmp_path: Path) -> None:
    """Llama Guard's token ids are not those of the tiny tokenizer."""
    result = qualify(QualifyRequest(str(tiny_guard), tmp_path / "q", profiles=("none",)))
    lines = by_check(result.lines)
    assert lines["prompts against the chat template", None].status == "FAIL"
    assert lines["export", "none"].status == "FAIL"
    assert ("loads", "none") not in lines
    assert result.passed is False


def test_a_source_that_is_none_is_a_line_and_a_report(tmp_path: Path) -> None:
    result = qualify(QualifyRequest(str(tmp_path / "missing"), tmp_path / "q"))
    assert [(line.check, line.status) for line in result.lines] == [("checkpoint", "FAIL")]
    assert json.loads((tmp_path / "q" / "report.json").read_text())["source"] is None


def test_a_profile_that_does_not_fit_memory_is_skipped(
    tiny: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.qualify.run.available_bytes", lambda: 1000)
    result = qualify(QualifyRequest(str(tiny), tmp_path / "q", adapter=tiny_adapter, profiles=("int8",)))
    line = by_check(result.lines)["export", "int8"]
    assert line.status == "SKIPPED"
    assert line.detail == "needs about 1.1 GB of memory, 0.0 GB are available"
    assert result.passed is True


def test_memory_is_the_least_that_machine_and_container_leave(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert available_bytes(tmp_path) == 5000 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for name, text in {
        "memory.max": "4000000",
        "memory.current": "3000000",
        "memory.stat": "inactive_file 500",
    }.items():
        (group / name).write_text(text + "\n")
    assert available_bytes(tmp_path) == 1_000_500
    (group / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 5000 * 1024


@pytest.mark.parametrize(("spec", "low", "high"), [(TINY, 1 << 30, 1.1e9), (LLAMA_3_2_1B, 7e9, 8e9)])
def test_float32_needs_more_than_its_weights(spec: ModelSpec, low: float, high: float) -> None:
    assert low < needed_bytes(spec, "none") < high
    assert needed_bytes(spec, "int4") < needed_bytes(spec, "int8") < needed_bytes(spec, "none")


def test_a_published_range_is_met_by_an_interval_near_it() -> None:
    score = published_scores()["xstest"]
    low, high = score.f1
    assert score.agrees((low, high))
    assert score.agrees((high + TOLERANCE / 2, 1.0)) and score.agrees((0.0, low - TOLERANCE / 2))
    assert not score.agrees((high + 2 * TOLERANCE, 1.0)) and not score.agrees((0.0, low - 2 * TOLERANCE))
    assert all(each.source for each in published_scores().values())


def test_the_built_in_conversations_are_balanced_and_distinct() -> None:
    data = probe_data()
    assert len({row.key for row in data.rows}) == len(data.rows) == 24
    assert sum(row.unsafe for row in data.rows) == 12
    assert probe_data() == data


def test_a_check_that_raises_is_a_failed_line() -> None:
    def broken() -> Any:
        raise ParityError("a\nb")

    lines = Lines(untrained=False)
    assert not lines.add("x", broken, needs_trained=True)
    assert lines.lines[0].detail.startswith("a b (random weights fail this by nature")
    assert not lines.passed


@pytest.mark.parametrize(
    "wrong",
    [{"profiles": ()}, {"profiles": ("int2",)}, {"benchmark": "nothing"}, {"benchmark": "toxicchat"}],
)
def test_wrong_requests_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        QualifyRequest("source", tmp_path, **wrong)


def test_few_rows_do_not_tell_shares_apart() -> None:
    # Wilson's interval for 39 of 40 is (0.871, 0.996), for 35 of 40 (0.739, 0.945).
    assert highest_share(39 / 40, 40) == pytest.approx(0.996, abs=1e-3)
    assert highest_share(35 / 40, 40) == pytest.approx(0.945, abs=1e-3)
    assert highest_share(0.98, 4000) < 0.99
    assert highest_share(1.0, 10) == pytest.approx(1.0)


def test_every_quantized_profile_has_a_bound() -> None:
    assert {"none", *AGREEMENT} == set(PROFILES)
