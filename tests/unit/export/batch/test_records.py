"""Which bundles are kept, made anew, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.batch.config import Job
from export.batch.records import (
    RECORDS,
    Record,
    decide,
    manifest_digest,
    options_of,
    read_record,
    write_record,
)
from export.checkpoint import open_checkpoint
from export.pipeline import ExportRequest, export_model
from guard.bundle.manifest import Source


@pytest.fixture(scope="module")
def source(tiny: Path) -> Source:
    return open_checkpoint(str(tiny)).source


@pytest.fixture
def job(tiny: Path, tmp_path: Path) -> Job:
    """A job whose bundle is there."""
    request = ExportRequest(str(tiny), tmp_path / "out" / "a", "instruct", "int8", name="a")
    export_model(request)
    return Job("a", request)


def made(job: Job) -> Record:
    return Record(options_of(job), manifest_digest(job.request.out), None)


def action(job: Job, record: Record | None, source: Source | None, again: bool = False) -> str:
    return decide(job, record, source, again).action


def test_what_is_there_and_as_asked_for_is_kept(job: Job, source: Source) -> None:
    assert decide(job, made(job), source, again=False).action == "keep"
    assert decide(job, made(job), None, again=False).action == "keep"
    assert decide(job, made(job), source, again=True).action == "remake"


def test_what_is_not_there_is_made(tiny: Path, tmp_path: Path) -> None:
    job = Job("a", ExportRequest(str(tiny), tmp_path / "a", "instruct"))
    assert action(job, None, None) == "make"
    (tmp_path / "a").mkdir()
    assert action(job, None, None) == "make"


def test_a_bundle_of_somebody_else_is_refused(job: Job, source: Source) -> None:
    assert action(job, None, source) == "refuse"
    assert action(job, replace(made(job), manifest="0" * 64), source) == "refuse"
    assert action(job, None, source, again=True) == "remake"


def test_what_is_no_bundle_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    jobs = {name: Job(name, ExportRequest(str(tiny), tmp_path / name, "instruct")) for name in ("full", "file", "link")}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for job in jobs.values():
        assert action(job, None, None, again=True) == "refuse"


def test_a_kill_before_publication_and_one_after_it(job: Job, source: Source) -> None:
    """The record of a run that was killed has no manifest; the bundle is the old one, or the new one and complete."""
    digest = manifest_digest(job.request.out)
    assert decide(job, Record(options_of(job), None, digest), source, False).reason == "the last run did not finish it"
    assert action(job, Record(options_of(job), None, None), source) == "keep"
    assert action(job, Record(options_of(job), None, "0" * 64), source) == "keep"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantization": "int4"}, "changed: quantization, calibration"),
        ({"task": "guard"}, "changed: task"),
        ({"name": "b"}, "changed: name"),
        ({"parity": False}, "changed: parity"),
        ({"max_kl": 0.5}, "changed: max_kl"),
        ({"packed": True}, "changed: packed"),
        ({"exporter": "optimum", "quantization": "none"}, "changed: quantization, exporter"),
    ],
)
def test_other_options_make_it_anew(job: Job, source: Source, change: Mapping[str, Any], reason: str) -> None:
    record = made(job)
    changed = Job("a", replace(job.request, **change))
    assert decide(changed, record, source, False).reason == reason


def test_calibration_says_nothing_where_there_is_none(job: Job, source: Source) -> None:
    assert action(Job("a", replace(job.request, calibrate=False)), made(job), source) == "keep"


def test_a_bundle_that_is_not_what_an_unfinished_record_says(job: Job, source: Source) -> None:
    other = Job("a", replace(job.request, quantization="int4"))
    unfinished = Record(options_of(other), None, None)
    assert decide(other, unfinished, source, False).reason == "is another than was asked for"


def test_other_bytes_make_it_anew(job: Job, source: Source) -> None:
    changed = replace(source, files={**source.files, "config.json": "0" * 64})
    assert decide(job, made(job), changed, False).reason == "the source changed: config.json"
    assert decide(job, made(job), replace(source, revision="abc"), False).reason == "the source changed: revision abc"
    adapted = replace(source, adapter={"adapter_model.safetensors": "0" * 64})
    assert decide(job, made(job), adapted, False).reason == "the source changed: the adapter"
    assert "renamed" in decide(job, made(job), replace(source, name="renamed"), False).reason


def test_a_damaged_bundle_is_made_anew(job: Job, source: Source) -> None:
    record = made(job)
    data = job.request.out / "model.onnx.data"
    os.truncate(data, data.stat().st_size - 1)
    decision = decide(job, record, source, False)
    assert decision.action == "remake" and decision.reason.startswith("damaged: model.onnx.data")


def test_another_version_or_processor_makes_it_anew(job: Job, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    record = made(job)
    versions = {**open_versions(job), "onnxruntime": "9.9"}
    monkeypatch.setattr("export.batch.records.exporter_versions", lambda exporter: versions)
    assert decide(job, record, source, False).reason == "made with another version: now onnxruntime 9.9"


def test_packed_on_another_processor(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("a", ExportRequest(str(tiny), tmp_path / "a", "instruct", "int8", name="a", packed=True))
    export_model(job.request)
    assert action(job, made(job), None) == "keep"
    monkeypatch.setattr("export.batch.records.instruction_sets", lambda: ("riscv",))
    assert decide(job, made(job), None, False).reason == "packed on another kind of processor"


def open_versions(job: Job) -> dict[str, str]:
    tools: dict[str, str] = json.loads((job.request.out / "manifest.json").read_text())["tools"]
    return tools


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / RECORDS).mkdir()
    record = Record({"task": "guard"}, "ab", None, 1.5, 1 << 30)
    assert read_record(tmp_path, "a") is None
    write_record(tmp_path, "a", record)
    assert read_record(tmp_path, "a") == record
    for broken in (b"", b"[]", b'{"options": {}}', b"\xff", b"[" * 100_000):
        (tmp_path / RECORDS / "a.json").write_bytes(broken)
        assert read_record(tmp_path, "a") is None
