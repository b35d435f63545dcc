"""The commands of docs/bulk.md do what it says, in order, in a directory of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.documented import commands

DOCUMENT = "docs/bulk.md"


@pytest.fixture
def directory(models: Path, tmp_path: Path) -> Path:
    """With the models where the document has them."""
    (tmp_path / "models").symlink_to(models)
    return tmp_path


def run(command: str, pieces: str, directory: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"({command}) 2>&1"],
        cwd=directory,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    for piece in pieces.splitlines():
        assert piece in done.stdout


def test_commands(directory: Path) -> None:
    found = commands(DOCUMENT, "bulk")
    assert len(found) == 10
    for command, pieces in found:
        run(command, pieces, directory)
    rows = [command for command, _ in found if command.startswith("printf")]
    assert len(rows) == 1
    assert (directory / "two.jsonl").read_text().count("\n") == 3


def test_commands_with_ray(directory: Path) -> None:
    pytest.importorskip("ray")
    base = [step for step in commands(DOCUMENT, "bulk") if step[0].startswith("printf") or " out.jsonl " in step[0]][:2]
    ray = commands(DOCUMENT, "ray")
    assert len(ray) == 2
    for command, pieces in [*base, *ray]:
        run(command, pieces, directory)
