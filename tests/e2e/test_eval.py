"""The embedded guard over a small data set: here and through a server, in both modes, alone and beside others."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.agreement import agreement, read_tasks
from guard.cli import main
from guard.engine.settings import EngineSettings
from guard.runtime import load_guard
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


def test_the_modes_agree_over_a_data_set_and_company_changes_nothing(models: Path) -> None:
    """Failure test 22, on trained weights. The exact mode's list could be read for every row."""
    classifier = load_guard(models / "embedded-guard", EngineSettings())
    try:
        found = agreement(classifier, read_tasks(PROBES))
    finally:
        classifier.close()
    assert (found.rows, found.same_verdict, found.together_same_verdict, found.unreadable) == (40, 40, 40, 0)
    assert found.unsafe >= 10
    assert found.largest_score_difference < 1e-3
