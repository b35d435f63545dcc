"""What `make audit` says: a service that cannot be asked is no clean bill."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.audit import audit


def pip_audit(path: Path, output: str, error: str = "") -> list[str]:
    """A command that answers as pip-audit would."""
    path.write_text(f"import sys\nprint({output!r})\nsys.exit({error!r} or 0)", encoding="utf-8")
    return [sys.executable, str(path)]


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "onnxruntime", "skip_reason": "not found"}
BAD = {"name": "jinja2", "version": "3.0", "vulns": [{"id": "CVE-1", "fix_versions": ["3.1"]}]}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([CLEAN], 0, "1 packages checked, 0 vulnerabilities"),
        ([CLEAN, SKIPPED], 3, "not checked: onnxruntime"),
        ([SKIPPED, SKIPPED], 3, "none of 2 packages, the first because: not found"),
        ([], 3, "names no package"),
        ([CLEAN, BAD], 1, "jinja2 3.0: CVE-1, fixed in 3.1"),
        ([BAD, SKIPPED], 1, "not checked: onnxruntime"),
        (None, 3, "ended with status 1: no route to host"),
    ],
)
def test_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packages: list[Any] | None, status: int, said: str
) -> None:
    if packages is None:
        command = pip_audit(tmp_path / "fake.py", "", "no route to host")
    else:
        command = pip_audit(tmp_path / "fake.py", json.dumps({"dependencies": packages}))
    assert audit(command) == status
    printed = capsys.readouterr().out
    assert said in printed
    checked = any("skip_reason" not in package for package in packages or [])
    assert ("SKIPPED, nothing was checked" in printed) is not checked
