"""The blocks of a document that are run: those after ``<!-- run: NAME -->``, by name.

In a console block, a line that starts with ``$`` is a command, and the lines after it are pieces that its output must
contain. A Python block must run to its end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.conftest import ROOT


def blocks(document: str, name: str, kind: str) -> list[str]:
    """The text of each block of ``kind`` (console or python)."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"<!-- run: {name} -->\n```{kind}\n(.*?)```", text, flags=re.DOTALL)


def commands(document: str, name: str) -> list[tuple[str, str]]:
    """Each command with the pieces that its output must contain, one a line."""
    steps = [step for text in blocks(document, name, "console") for step in re.split(r"^\$ ", text, flags=re.MULTILINE)]
    found = []
    for step in filter(None, steps):
        command, _, pieces = step.partition("\n")
        found.append((command, pieces))
    return found


def check(command: str, pieces: str, addresses: Mapping[str, str]) -> None:
    """Run ``command`` with ``addresses`` in the place of those that the document names."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"({moved(command, addresses)}) 2>&1"],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    for piece in pieces.splitlines():
        assert piece in done.stdout


def output(program: str, addresses: Mapping[str, str]) -> str:
    """What a Python block prints."""
    command = [sys.executable, "-c", moved(program, addresses)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def moved(text: str, addresses: Mapping[str, str]) -> str:
    """``text`` with other addresses; each must be there somewhere, or nothing would be tried."""
    assert not addresses or any(documented in text for documented in addresses)
    for documented, real in addresses.items():
        text = text.replace(documented, real)
    return text
