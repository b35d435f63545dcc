"""A batch of exports that is killed at any moment, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from export.batch.child import export_command
from export.batch.config import load_batch
from export.synthetic import make_checkpoint
from guard.bundle import open_bundle
from guard.cli import EXIT_FAILED, EXIT_SOME_FAILED
from tests.e2e.conftest import ROOT

NAMES = ("one-int8", "one-int4", "two-int8", "two-int4")
CONFIG = """
output: out
parallel: {parallel}
max_memory: 4Gi
defaults: {{task: instruct, quantization: [int8, int4], name: "{{source}}-{{quantization}}"}}
exports:
  - source: one
  - source: two
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two tiny checkpoints."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("one", "two")):
        make_checkpoint(directory / name, seed=seed)
    return directory


@pytest.fixture(params=[1, 2])
def config(checkpoints: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_config(checkpoints, tmp_path, request.param)


def write_config(checkpoints: Path, directory: Path, parallel: int) -> Path:
    for name in ("one", "two"):
        (directory / name).symlink_to(checkpoints / name)
    path = directory / "exports.yaml"
    path.write_text(CONFIG.format(parallel=parallel))
    return path


def start(config: Path, *options: str) -> subprocess.Popen[str]:
    """In a process group of its own, which can be killed as a whole."""
    command = [sys.executable, "-m", "guard.cli", "export", "--config", str(config), *options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def run(config: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Status and report (of a failure: the error)."""
    process = start(config, "--json", *options)
    out, errors = process.communicate(timeout=120)
    report: dict[str, Any] = json.loads(out or errors)
    return process.returncode, report


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["outcome"] for row in report["exports"]}


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def published(output: Path) -> list[str]:
    """The bundles that are there; each must be whole."""
    found = sorted(path.name for path in output.glob("[!.]*-int*"))
    for name in found:
        open_bundle(output / name)
    return found


def identities(output: Path, names: Sequence[str]) -> dict[Path, tuple[int, int]]:
    """Inode and time of change of every file."""
    files = [path for name in names for path in (output / name).iterdir()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_four_bundles_killed_and_resumed(config: Path, tmp_path: Path) -> None:
    output = config.parent / "out"
    process = start(config)
    until(lambda: published(output) and list(output.glob(".*.partial/model.onnx.data")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = published(output)
    assert 1 <= len(done) < 4
    kept = identities(output, done)

    status, report = run(config)
    assert status == 0
    assert outcomes(report) == {name: "current" if name in done else "made" for name in NAMES}
    assert identities(output, done) == kept
    assert sorted(path.name for path in output.iterdir()) == sorted([*NAMES, ".exports", "exports.json", "exports.md"])
    for job in load_batch(config).jobs:
        command = export_command(job.request, overwrite=False)
        command[command.index("--out") + 1] = str(tmp_path / "single" / job.name)
        subprocess.run([sys.executable, "-m", "guard.cli", *command], check=True, capture_output=True, timeout=60)
        single = {path.name: path.read_bytes() for path in (tmp_path / "single" / job.name).iterdir()}
        assert single == {path.name: path.read_bytes() for path in (output / job.name).iterdir()}


def test_killed_again_and_again(checkpoints: Path, tmp_path: Path) -> None:
    config = write_config(checkpoints, tmp_path, parallel=2)
    output = tmp_path / "out"
    kept: dict[Path, tuple[int, int]] = {}
    for delay in (0.2, 0.5, 0.7, 0.9, 1.1, 1.3):
        process = start(config)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = identities(output, published(output))
        assert kept.items() <= now.items()
        kept = now
    assert run(config)[0] == 0
    assert published(output) == sorted(NAMES)
    assert kept.items() <= identities(output, NAMES).items()


def test_a_batch_that_is_killed_alone(checkpoints: Path, tmp_path: Path) -> None:
    """Its export goes on, keeps others out, and its bundle is not made again."""
    config = write_config(checkpoints, tmp_path, parallel=1)
    output = tmp_path / "out"
    process = start(config)
    until(lambda: list(output.glob(".one-int8.partial/tokenizer.json")))
    (orphan,) = children(process.pid)
    os.kill(orphan, signal.SIGSTOP)
    process.kill()
    process.communicate()
    try:
        status, report = run(config)
        assert status == EXIT_FAILED
        assert "another batch, or an export that one left running" in report["error"]["message"]
    finally:
        os.kill(orphan, signal.SIGCONT)
    until(lambda: published(output) and not Path(f"/proc/{orphan}/status").exists())
    kept = identities(output, ["one-int8"])
    status, report = run(config)
    assert status == 0
    assert outcomes(report)["one-int8"] == "current"
    assert identities(output, ["one-int8"]) == kept


def test_a_term_signal_ends_it_tidily(checkpoints: Path, tmp_path: Path) -> None:
    config = write_config(checkpoints, tmp_path, parallel=2)
    output = tmp_path / "out"
    process = start(config)
    until(lambda: list(output.glob(".*.partial")))
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().endswith("guard export: interrupted")
    assert list(output.glob(".*.partial")) == []
    assert json.loads((output / "exports.json").read_text())["passed"] is False


def test_one_that_fails_and_the_exit_status(checkpoints: Path, tmp_path: Path) -> None:
    config = write_config(checkpoints, tmp_path, parallel=2)
    (tmp_path / "two").unlink()
    make_checkpoint(tmp_path / "two", seed=9)
    (tmp_path / "two" / "config.json").write_text("{}")
    status, report = run(config)
    assert status == EXIT_SOME_FAILED
    assert outcomes(report) == {name: "made" if name.startswith("one") else "failed" for name in NAMES}
    assert all("config.json" in row["reason"] for row in report["exports"] if row["outcome"] == "failed")
    assert report["counts"] == {"made": 2, "failed": 2}
