"""What a load does with a packed bundle when there is little memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.pipeline import ExportRequest, export_model
from guard import runtime
from guard.bundle import open_bundle
from guard.engine.settings import EngineSettings
from guard.runtime import load_instruct


@pytest.mark.parametrize(("memory", "packed", "dropped"), [(1, True, True), (1 << 40, True, False), (1, False, False)])
def test_originals_leave_the_page_cache_only_where_memory_is_short(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, packed: bool, dropped: bool
) -> None:
    export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct", "int8", max_kl=10.0, packed=packed))
    record = open_bundle(tmp_path / "out").manifest.files["model.onnx.data"]
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(runtime, "available_memory", lambda: memory)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, start, length, advice: advised.append((start, length)))
    load_instruct(tmp_path / "out", EngineSettings(threads=1)).close()
    assert bool(advised) == dropped
    assert all(start == 0 and length < record.bytes for start, length in advised)
