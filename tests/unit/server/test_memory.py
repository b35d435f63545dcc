from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from guard.errors import BundleError, MemoryPlanError
from server.memory import MemoryPlan
from server.settings import Settings
from tests.unit.guard.builders import write_bundle


def test_a_model_is_refused_beside_those_that_are_loaded(tmp_path: Path) -> None:
    guard, instruct = write_bundle(tmp_path / "guard", "guard"), write_bundle(tmp_path / "instruct", "instruct")
    enough = MemoryPlan(Settings(guard=guard.directory), 1 << 40).plan.total
    memory = MemoryPlan(Settings(guard=guard.directory, kv_cache_mib=512), enough)
    with pytest.raises(MemoryPlanError) as caught:
        memory.check_with([guard.manifest], instruct.directory)
    assert instruct.manifest.name in str(caught.value)
    memory.check_with([], instruct.directory)  # in its place, it fits


def test_a_screen_is_part_of_the_plan(tmp_path: Path) -> None:
    guard, small = write_bundle(tmp_path / "guard", "guard"), write_bundle(tmp_path / "small", "guard")
    one = Settings(guard=guard.directory, kv_cache_mib=64)
    two = replace(one, screen=small.directory, screen_safe_below=0.1)
    assert [len(MemoryPlan(settings, 1 << 40).plan.models) for settings in (one, two)] == [1, 2]
    with pytest.raises(MemoryPlanError):
        MemoryPlan(two, MemoryPlan(one, 1 << 40).plan.total)


def test_the_server_does_not_start_without_the_memory(tmp_path: Path) -> None:
    """Failure test 18: refused at start, with the arithmetic."""
    guard = write_bundle(tmp_path / "guard", "guard")
    with pytest.raises(MemoryPlanError, match="are needed and 64 MiB are there: process"):
        MemoryPlan(Settings(guard=guard.directory), 64 << 20)


def test_a_bundle_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        MemoryPlan(Settings(guard=tmp_path), 1 << 40)
