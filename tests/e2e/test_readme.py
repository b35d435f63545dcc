"""The README's commands do what it says: every block marked ``<!-- run -->`` is run against a real server.

In a console block, a line that starts with ``$`` is a command, and the lines after it are pieces that its output must
contain. A Python block must run to its end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guard.cli.connection import DEFAULT_ADDRESS
from tests.e2e.conftest import ROOT
from tools.server_process import ServerProcess

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    tuple(step.split("\n", maxsplit=1))
    for kind, text in BLOCKS
    if kind == "console"
    for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
]
SCRIPTS = [text for kind, text in BLOCKS if kind == "python"]


@pytest.fixture
def environment(server: ServerProcess) -> dict[str, str]:
    """The commands of this environment first on the path, and the address for those that do not name one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "GUARD_ADDRESS": server.address}


def test_the_readme_has_blocks_to_run() -> None:
    assert len(COMMANDS) >= 8
    assert len(SCRIPTS) == 1


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_commands(server: ServerProcess, environment: dict[str, str], command: str, expected: str) -> None:
    command = command.replace(DEFAULT_ADDRESS, server.address)
    done = subprocess.run(
        ["bash", "-c", f"({command}) 2>&1"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    for piece in expected.splitlines():
        assert piece in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_python(server: ServerProcess, environment: dict[str, str], script: str) -> None:
    script = script.replace(DEFAULT_ADDRESS, server.address)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Verdict.UNSAFE" in done.stdout
    assert "INVALID_INPUT" in done.stdout
