"""Whole runs, with real exports of tiny checkpoints."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from os import kill
from pathlib import Path
from typing import Any

import pytest

from export.batch import Batch, RunOptions, Terminated, plan_batch, run_batch
from export.batch.config import JSON_FILE, MARKDOWN_FILE, read_batch
from export.batch.lock import locked
from export.batch.records import read_record, write_record
from export.batch.report import Report
from export.pipeline import ExportRequest, export_model
from guard.errors import InvalidInputError, UnavailableError
from tests.unit.export.conftest import copy_to

FAST = "task: instruct, parity: false, quantization: [none, int8]"


def batch_of(tmp_path: Path, tiny: Path, exports: str = "", **changes: Any) -> Batch:
    """Two bundles of ``tiny``, a and b, unless ``exports`` says others."""
    exports = exports or f"{{source: {tiny}, name: 'x-{{quantization}}'}}"
    text = f"output: out\nparallel: 2\nmax_memory: 4Gi\ndefaults: {{{FAST}}}\nexports: [{exports}]"
    return replace(read_batch(text, tmp_path / "exports.yaml"), **changes)


def outcomes(report: Report) -> dict[str, str]:
    return {row.name: row.outcome for row in report.exports}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_bundles_are_those_of_single_exports_and_are_made_once(tiny: Path, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, tiny)
    planned = plan_batch(batch, RunOptions())
    assert outcomes(planned) == {"x-none": "planned", "x-int8": "planned"} and planned.passed
    assert not batch.output.exists()

    first = run_batch(batch, RunOptions())
    assert outcomes(first) == {"x-none": "made", "x-int8": "made"} and first.passed
    for job in batch.jobs:
        export_model(replace(job.request, out=tmp_path / "single" / job.name))
        assert contents(tmp_path / "single" / job.name) == contents(job.request.out)
    inodes = {path: path.stat().st_ino for path in batch.output.glob("x-*/*")}

    second = run_batch(batch, RunOptions())
    assert outcomes(second) == {"x-none": "current", "x-int8": "current"} and second.passed
    assert {path: path.stat().st_ino for path in batch.output.glob("x-*/*")} == inodes
    for before, after in zip(first.exports, second.exports, strict=True):
        assert (after.seconds, after.peak_bytes, after.bytes) == (before.seconds, before.peak_bytes, before.bytes)
        assert None not in (after.seconds, after.peak_bytes, after.bytes)

    third = run_batch(batch, RunOptions(only=("x-int8",), again=True))
    assert outcomes(third) == {"x-none": "skipped", "x-int8": "made"} and third.passed


def test_a_broken_checkpoint_fails_by_name_and_the_others_are_made(tiny: Path, tmp_path: Path) -> None:
    broken = copy_to(tiny, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    batch = batch_of(tmp_path, tiny, f"{{source: {broken}, name: bad, quantization: int8}}, {{source: {tiny}}}")
    said: list[str] = []
    report = run_batch(batch, RunOptions(), said.append)
    assert outcomes(report) == {"bad": "failed", "tiny-instruct-none": "made", "tiny-instruct-int8": "made"}
    assert not report.passed
    assert "model.safetensors" in report.exports[0].reason
    assert any(line.startswith("bad: failed: model.safetensors") for line in said)
    assert "- **bad**: model.safetensors" in (batch.output / MARKDOWN_FILE).read_text()
    written = json.loads((batch.output / JSON_FILE).read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert written["counts"] == {"failed": 1, "made": 2} and written["passed"] is False

    assert outcomes(run_batch(batch, RunOptions(fail_fast=True, again=True))) == {
        "bad": "failed",
        "tiny-instruct-none": "skipped",
        "tiny-instruct-int8": "skipped",
    }


def test_what_fails_in_its_export_leaves_the_others_alone(tiny: Path, tmp_path: Path) -> None:
    """The numbers are only known at the end of an export."""
    strict = "parity: true, max_kl: 0, quantization: int8"
    batch = batch_of(tmp_path, tiny, f"{{source: {tiny}, name: strict, {strict}}}, {{source: {tiny}}}")
    report = run_batch(batch, RunOptions())
    assert list(outcomes(report).values()) == ["failed", "made", "made"]
    assert "mean KL" in report.exports[0].reason
    assert report.exports[0].seconds and not (batch.output / "strict").exists()


def test_what_would_not_fit_is_not_started(tiny: Path, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, tiny, max_memory=1 << 20)
    report = run_batch(batch, RunOptions())
    assert set(outcomes(report).values()) == {"failed"}
    assert "MiB of memory, and may have 1 MiB" in report.exports[0].reason
    assert outcomes(plan_batch(batch, RunOptions())) == outcomes(report)


def test_options_that_changed_make_it_anew(tiny: Path, tmp_path: Path) -> None:
    run_batch(batch_of(tmp_path, tiny), RunOptions())
    changed = batch_of(tmp_path, tiny, f"{{source: {tiny}, name: 'x-{{quantization}}', parity: true}}")
    report = run_batch(changed, RunOptions())
    assert {row.outcome: row.reason for row in report.exports} == {"made": "changed: parity"}
    assert all(row.parity is not None for row in report.exports)


def test_a_bundle_made_by_hand_is_not_replaced(tiny: Path, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, tiny)
    export_model(ExportRequest(str(tiny), batch.output / "x-int8", "instruct", parity=False))
    mine = contents(batch.output / "x-int8")
    assert outcomes(run_batch(batch, RunOptions())) == {"x-none": "made", "x-int8": "failed"}
    assert contents(batch.output / "x-int8") == mine
    assert outcomes(run_batch(batch, RunOptions(again=True))) == {"x-none": "made", "x-int8": "made"}


def test_a_bundle_published_by_a_run_that_was_killed_is_adopted(tiny: Path, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, tiny)
    run_batch(batch, RunOptions())
    record = read_record(batch.output, "x-int8")
    assert record is not None
    write_record(batch.output, "x-int8", replace(record, manifest=None, seconds=None, peak_bytes=None))
    assert outcomes(run_batch(batch, RunOptions())) == {"x-none": "current", "x-int8": "current"}
    adopted = read_record(batch.output, "x-int8")
    assert adopted is not None and adopted.manifest == record.manifest


def test_a_name_that_the_file_has_not(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="only: the file has no y; there are: x-none, x-int8"):
        plan_batch(batch_of(tmp_path, tiny), RunOptions(only=("y",)))


def test_two_runs_do_not_meet(tiny: Path, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, tiny)
    with locked(batch.output), pytest.raises(UnavailableError, match="another batch"):
        run_batch(batch, RunOptions())
    assert not (batch.output / JSON_FILE).exists()
    with locked(batch.output):
        pass


def test_a_dry_run_does_not_ask_the_hub(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.batch.plan.open_checkpoint", lambda *args, **options: pytest.fail("it did"))
    report = plan_batch(batch_of(tmp_path, tiny, "{source: org/model}"), RunOptions())
    assert set(outcomes(report).values()) == {"planned"} and report.exports[0].estimated_bytes is None


def when_running(output: Path, name: str, act: Callable[[int], None]) -> threading.Thread:
    """Call ``act`` with the process id of the export of ``name`` once it has begun to write."""

    def watch() -> None:
        while not (output / f".{name}.partial" / "tokenizer.json").exists():
            time.sleep(0.001)
        found = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if f"--out\0{output / name}\0".encode() in path.read_bytes()
        ]
        act(found[0])

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_an_export_that_is_killed_alone_is_reported(tiny: Path, tmp_path: Path) -> None:
    slow = "quantization: int4, parity: true"
    batch = batch_of(
        tmp_path, tiny, f"{{source: {tiny}, name: victim, {slow}}}, {{source: {tiny}, name: 'x-{{quantization}}'}}"
    )
    thread = when_running(batch.output, "victim", lambda pid: kill(pid, signal.SIGKILL))
    report = run_batch(batch, RunOptions())
    thread.join()
    assert outcomes(report) == {"victim": "failed", "x-none": "made", "x-int8": "made"}
    assert report.exports[0].reason.startswith("killed by SIGKILL")
    assert list(batch.output.glob(".*.partial")) == []
    assert outcomes(run_batch(batch, RunOptions())) == {"victim": "made", "x-none": "current", "x-int8": "current"}


def test_an_interrupted_run_ends_its_exports_and_writes_its_report(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGUSR1, terminate)
    try:
        batch = batch_of(tmp_path, tiny, f"{{source: {tiny}, name: 'x-{{quantization}}', parity: true}}", parallel=1)
        me = threading.get_native_id()
        thread = when_running(batch.output, "x-none", lambda pid: kill(me, signal.SIGUSR1))
        with pytest.raises(KeyboardInterrupt):
            run_batch(batch, RunOptions())
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    rows = json.loads((batch.output / JSON_FILE).read_text())["exports"]
    assert [row["reason"] for row in rows] == ["interrupted", "not started"]
    assert list(batch.output.glob(".x-*")) == []
    assert run_batch(batch, RunOptions()).passed
