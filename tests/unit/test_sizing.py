"""Memory limits in deploy/ and in the documents are what `guard plan` prints."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from guard.bundle.manifest import Manifest
from guard.cli import main
from guard.cli.plan import read_size
from guard.engine.settings import EngineSettings
from guard.plan import MIB, plan_server
from tests.unit.manifests import COMPOSE, ROOT, container, read, settings_of
from tools.sizing import MANIFESTS, PLANNED, manifest, recommended, table


def printed(
    capsys: pytest.CaptureFixture[str], directory: Path, bundles: Sequence[str], kv_mib: int, memory: str
) -> int:
    """What `guard plan` prints as needed, in MiB, for the kept manifests of ``bundles``; it must say that it fits."""
    for name in bundles:
        (directory / name).mkdir()
        (directory / name / "manifest.json").write_bytes((MANIFESTS / f"{name}.json").read_bytes())
    asked = [*(str(directory / name) for name in bundles), "--kv-cache-mib", str(kv_mib), "--memory", memory]
    assert main(["plan", *asked]) == 0
    line = re.search(r"^= needed +(\d+) MiB +of \d+ MiB: fits$", capsys.readouterr().out, re.MULTILINE)
    assert line is not None
    return int(line[1])


def test_the_memory_of_the_pod_is_what_the_plan_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = read("deployment.yaml")
    settings = settings_of(deployment, tmp_path)
    assert settings.guard is not None and settings.guard.name.endswith("int8") and settings.instruct is None
    needed = recommended([manifest("1bguard-int8")], settings.kv_cache_mib * MIB)
    resources = container(deployment)["resources"]
    assert read_size(resources["limits"]["memory"]) == needed
    assert resources["requests"] == resources["limits"]
    told = printed(capsys, tmp_path, ["1bguard-int8"], settings.kv_cache_mib, resources["limits"]["memory"])
    assert needed == math.ceil(told / 0.95 / 64) * 64 * MIB


def test_the_memory_of_the_compose_file_is_what_the_plan_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["guardlet"]
    kv_bytes = int(service["environment"]["GUARD_KV_CACHE_MIB"]) * MIB
    bundles = ["embedded-guard", "embedded-instruct"]
    needed = recommended([manifest(name) for name in bundles], kv_bytes)
    assert service["mem_limit"] == service["memswap_limit"] == f"{needed // MIB}m"
    assert needed // MIB - printed(capsys, tmp_path, bundles, kv_bytes // MIB, f"{needed // MIB}Mi") < 0.05 * 1024 + 64


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: str(row.title))
def test_what_is_recommended_fits_and_not_much_less_would(row: Any) -> None:
    manifests = [manifest(name) for name in row.bundles]
    limit = recommended(manifests, row.kv_bytes)
    plan = plan_server(manifests, EngineSettings(), 32 * MIB, row.kv_bytes, limit)
    plan.check(limit)
    assert limit - plan.total < 0.05 * limit + 64 * MIB
    assert limit % (64 * MIB) == 0 and math.isclose(limit, plan.total / 0.95, rel_tol=0.15)


def test_the_sizes_in_the_documents_are_those_of_the_plan() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert table() in text, f"run python -m tools.sizing and paste:\n{table()}"


def test_the_manifests_of_the_sizes_are_of_the_shape_they_name() -> None:
    for name in ("1bguard-int8", "1bguard-int4", "1binstruct-int8", "1binstruct-int4"):
        shape: Manifest = manifest(name)
        assert (shape.shape.layers, shape.shape.hidden_size, shape.shape.vocab_size) == (16, 2048, 128256)
        assert shape.quantization.name == name.rpartition("-")[2]
