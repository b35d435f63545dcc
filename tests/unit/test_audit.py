"""What `make audit` says: a service that cannot be asked is no clean bill."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.audit import audit


def pip_audit(path: Path, output: str) -> list[str]:
    """A command that answers as pip-audit would."""
    path.write_text(f"print({output!r})", encoding="utf-8")
    return [sys.executable, str(path)]


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "onnxruntime", "skip_reason": "not found"}
BAD = {"name": "jinja2", "version": "3.0", "vulns": [{"id": "CVE-1", "fix_versions": ["3.1"]}]}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([CLEAN], 0, "1 packages checked, 0 vulnerabilities"),
        ([CLEAN, SKIPPED], 0, "not checked: onnxruntime"),
        ([SKIPPED, SKIPPED], 0, "SKIPPED"),
        ([CLEAN, BAD], 1, "jinja2 3.0: CVE-1, fixed in 3.1"),
        (None, 0, "SKIPPED"),
    ],
)
def test_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packages: list[Any] | None, status: int, said: str
) -> None:
    output = "no route to host" if packages is None else json.dumps({"dependencies": packages})
    assert audit(pip_audit(tmp_path / "fake.py", output)) == status
    printed = capsys.readouterr().out
    assert said in printed
    assert ("SKIPPED" in printed) is (said == "SKIPPED")
