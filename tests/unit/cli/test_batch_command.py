"""guard export --config: options, what is printed, and exit statuses."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.synthetic import make_checkpoint
from guard.cli import EXIT_FAILED, EXIT_SOME_FAILED, EXIT_USAGE, main


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command handles SIGTERM for the rest of its process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "exports.yaml"
    path.write_text(
        f"output: out\nmax_memory: 2Gi\ndefaults: {{task: instruct, parity: false, quantization: none}}\n"
        f"exports:\n- {{source: {checkpoint}, name: good}}\n- {{source: {checkpoint.parent}, name: bad}}\n"
    )
    return path


def run(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def test_a_run_for_people(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", config) == EXIT_SOME_FAILED
    out, errors = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["name", "outcome"]
    assert lines[1].startswith("good  made")
    assert lines[3].startswith("bad: failed: ")
    assert lines[4].startswith("2 exports: 1 made, 1 failed; ")
    assert "good: started (not there)" in errors and "good: made, " in errors
    assert run("--config", config, "--only", "good") == 0
    assert "good  current" in capsys.readouterr().out


def test_a_run_for_machines(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", config, "--json") == EXIT_SOME_FAILED
    out, errors = capsys.readouterr()
    report = json.loads(out)
    assert (report["format"], report["version"], report["passed"]) == ("guardlet-exports", 1, False)
    assert report["counts"] == {"made": 1, "failed": 1}
    assert report["max_memory"] == 2 << 30
    good = report["exports"][0]
    assert good["bytes"] > 0 and good["seconds"] > 0 and good["peak_bytes"] > 0 and good["estimated_bytes"] > 0
    assert good["shape"]["layers"] == 2 and good["parity"] is None and len(good["manifest_sha256"]) == 64
    assert json.loads((config.parent / "out" / "exports.json").read_text()) == report
    assert errors == ""


def test_a_dry_run_writes_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", config, "--dry-run", "--only", "good") == 0
    out = capsys.readouterr().out
    assert "good: planned: not there" in out and "1 planned, 1 skipped" in out
    assert run("--config", config, "--dry-run") == EXIT_SOME_FAILED
    assert sorted(path.name for path in config.parent.iterdir()) == ["exports.yaml"]


def test_a_file_that_is_wrong_is_named_with_key_and_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("name: bad", "nmae: bad"))
    assert run("--config", config) == EXIT_FAILED
    message = capsys.readouterr().err
    assert f"{config}: exports[1].nmae: is unknown; there are: " in message and "(line 6)" in message
    assert run("--config", config, "--json") == EXIT_FAILED
    assert json.loads(capsys.readouterr().err)["error"]["reason"] == "INVALID_INPUT"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "SOURCE and --out are required, or --config"),
        (["ck"], "SOURCE and --out are required, or --config"),
        (["ck", "--out", "o", "--dry-run"], "--dry-run needs --config"),
        (["ck", "--out", "o", "--only", "a"], "--only needs --config"),
        (["ck", "--config", "x"], "SOURCE: with --config, the file says it"),
        (["--config", "x", "--out", "o"], "--out: with --config, the file says it"),
        (["--config", "x", "--no-parity"], "--no-parity: with --config, the file says it"),
        (["--config", "x", "--fail-fast", "--keep-going"], "not allowed with"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == EXIT_USAGE
    assert problem in capsys.readouterr().err
