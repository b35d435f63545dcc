"""The embedded guard, measured in this process and through a server: the same verdicts, and some of them unsafe."""

from __future__ import annotations

import json
from pathlib import Path

from guard.cli import main
from tools.server_process import ServerProcess

PROBES = Path(__file__).resolve().parent.parent.parent / "training" / "probes.jsonl"


def test_a_server_and_its_bundle_measure_the_same(server: ServerProcess, models: Path, tmp_path: Path) -> None:
    base = ["eval", str(PROBES), "--rounds", "1", "--out"]
    assert main([*base, str(tmp_path / "here"), "--guard", str(models / "embedded-guard")]) == 0
    compared = ["--compare", str(tmp_path / "here" / "predictions.jsonl")]
    assert main([*base, str(tmp_path / "there"), "--address", server.address, *compared]) == 0
    here, there = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("here", "there"))
    assert there["judge"] == here["judge"]
    assert there["comparison"]["rows"] == 40
    assert there["comparison"]["verdict_agreement"] == 1.0
    assert there["comparison"]["score_difference"]["max"] < 1e-3
    assert there["overall"]["true_positives"] == here["overall"]["true_positives"] >= 10
