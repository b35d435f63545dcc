"""export, synth, verify and plan on a tiny random checkpoint."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from export.progress import ProgressLines
from guard.cli import main
from server.memory import MemoryPlan
from server.settings import Settings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "checkpoint"
    assert main(["synth", "--out", str(out), "--shape", "tiny"]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "bundle"
    options = ["--task", "instruct", "--quantization", "none", "--name", "tiny"]
    assert main(["export", str(checkpoint), "--out", str(out), *options]) == 0
    return out


def test_export_says_what_it_made(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    assert main(["export", str(checkpoint), "--out", str(out), "--task", "instruct", "--max-kl", "1"]) == 0
    text, progress = capsys.readouterr()
    assert text.startswith(f"{out}: checkpoint-int8, instruct, int8,")
    assert "mean KL" in text
    assert "  building the graph (int8) ... " in progress


def test_export_profiles_name_quantizations(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["export", str(checkpoint), "--task", "instruct", "--no-parity", "--no-calibration", "--json"]
    for purpose, name in (("speed", "int8"), ("balanced", "int4"), ("small", "int4-small")):
        assert main([*common, "--out", str(tmp_path / purpose), "--profile", purpose]) == 0
        assert json.loads(capsys.readouterr().out)["manifest"]["quantization"]["name"] == name
    with pytest.raises(SystemExit):
        main([*common, "--out", str(tmp_path / "both"), "--profile", "small", "--quantization", "int4"])
    assert "not allowed with argument --profile" in capsys.readouterr().err


def test_export_json_is_the_manifest(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    assert (
        main(["export", str(checkpoint), "--out", str(out), "--task", "instruct", "--quantization", "none", "--json"])
        == 0
    )
    text, progress = capsys.readouterr()
    assert progress == ""
    assert json.loads(text)["manifest"] == json.loads((out / "manifest.json").read_bytes())


def test_export_does_not_replace_a_bundle_unasked(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    assert main(["export", str(checkpoint), "--out", str(bundle), "--task", "instruct"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("guard export: ")
    assert (bundle / "manifest.json").read_bytes() == before


def test_export_of_nothing_fails_clearly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "missing"), "--out", str(tmp_path / "b")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("guard export: ")
    assert not (tmp_path / "b").exists()


def test_synth_json_and_refusal(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "--out", str(tmp_path / "c"), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert main(["synth", "--out", str(checkpoint)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_verify(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith("tiny: instruct, none, ")
    assert main(["verify", str(bundle), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["verified"] is True and "model.onnx" in value["files"]

    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    data = bytearray((broken / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "model.onnx").write_bytes(data)
    assert main(["verify", str(broken)]) == 1
    assert capsys.readouterr() == ("", "guard verify: model.onnx: SHA-256 differs from the manifest\n")


def test_plan_is_the_servers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(bundle), "--memory", "1Gi", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    served = MemoryPlan(Settings(guard=bundle), 1 << 30)
    assert plan["total"] == served.plan.total
    assert plan["models"][0]["kv"] == served.engine.kv_bytes == served.plan.models[0].kv
    assert main(["plan", str(bundle), "--memory", "64Mi"]) == 1
    assert "of 64 MiB: " in capsys.readouterr().out
    for options, field in (["--memory", "much"], "memory"), (["--cpus", "0"], "cpus"), (["--kv-cache-mib", "-1"], "kv"):
        assert main(["plan", str(bundle), *options]) == 1
        assert capsys.readouterr().err.startswith(f"guard plan: {field}")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_plain_lines_in_a_log() -> None:
    stream = io.StringIO()
    with ProgressLines(stream) as progress:
        progress.show("one", 0.0)
        progress.show("one", 0.5)
        progress.show("one", 1.0)
        progress.show("two", 0.0)
        progress.show("three", 0.0)
    lines = stream.getvalue().split("\n")
    assert lines[0].startswith("  one ... ") and lines[0].endswith(" s")
    assert lines[1:] == ["  two ...", "  three ...", ""]
    assert "\r" not in stream.getvalue()


def test_progress_counts_on_a_terminal_and_ends_its_line_on_failure() -> None:
    stream = Terminal()
    with pytest.raises(RuntimeError), ProgressLines(stream) as progress:
        progress.show("one", 0.0)
        progress.show("one", 0.25)
        raise RuntimeError
    assert stream.getvalue() == "  one ...\r  one ...  25%\r  one ... failed\n"
