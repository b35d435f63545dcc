from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from guard.bundle.manifest import FileRecord, Manifest, Packed
from guard.engine.cpus import instruction_sets
from guard.engine.memory import available_memory
from guard.engine.settings import EngineSettings
from guard.errors import MemoryPlanError
from guard.plan import MAX_AUTOMATIC_KV_BYTES, MIB, MIN_KV_TOKENS, Plan, plan_server
from tests.unit.guard.builders import write_bundle

ENGINE = EngineSettings()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    written = write_bundle(tmp_path / "bundle", "guard").manifest
    sizes = {"model.onnx": MIB, "model.onnx.data": 100 * MIB, "tokenizer.json": 2 * MIB}
    return replace(written, files={name: FileRecord("0" * 64, size) for name, size in sizes.items()})


def planned(manifests: list[Manifest], limit: int, kv_bytes: int = 0) -> Plan:
    return plan_server(manifests, ENGINE, 32 * MIB, kv_bytes, limit)


def test_the_sum_is_that_of_its_parts(manifest: Manifest) -> None:
    plan = planned([manifest, manifest], 4096 * MIB, kv_bytes=10 * MIB)
    first = plan.models[0]
    assert plan.total == plan.process + plan.requests + 2 * first.total
    assert first.total == first.weights + first.tokenizer + first.workspace + first.prefixes + 10 * MIB
    assert first.kv_tokens == 10 * MIB // manifest.shape.kv_bytes_per_token
    assert first.weights + first.mapped == 101 * MIB


def test_the_kv_cache_takes_what_is_left_within_bounds(manifest: Manifest) -> None:
    roomy, tight = planned([manifest, manifest], 64 << 30), planned([manifest, manifest], 900 * MIB)
    assert {model.kv for model in roomy.models} == {MAX_AUTOMATIC_KV_BYTES}
    assert roomy.models[0].kv > tight.models[0].kv == tight.models[1].kv
    assert 0.9 * 900 * MIB < tight.total <= 900 * MIB
    none_left = planned([manifest], 1)
    assert none_left.models[0].kv == MIN_KV_TOKENS * manifest.shape.kv_bytes_per_token


def test_too_little_memory_is_refused_with_the_arithmetic(manifest: Manifest) -> None:
    """Failure test 18: a limit below the plan."""
    plan = planned([manifest], 1 << 30)
    plan.check(plan.total)
    with pytest.raises(MemoryPlanError) as caught:
        plan.check(plan.total - 1)
    message = str(caught.value)
    for part in (f"{plan.total / MIB:.0f} MiB are needed", "process", "weights", "KV cache", manifest.name):
        assert part in message


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory/memory.limit_in_bytes": "536870912\n"}, 1 << 29),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_the_containers_limit_counts(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    machine = available_memory(tmp_path / "no cgroup")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == (machine if limit is None else min(machine, limit))


def test_weights_packed_for_this_machine_are_pages_of_a_file_and_must_still_fit(manifest: Manifest) -> None:
    """Failure test 18: mapped weights may be dropped, but a server without room for them is not what was asked for."""
    files = {**manifest.files, "model.onnx.data": FileRecord("0" * 64, 190 * MIB)}
    packed = Packed(onnxruntime.__version__, instruction_sets(), 90 * MIB, 30 * MIB, replaced=80 * MIB)
    here = planned([replace(manifest, files=files, packed=packed)], 4096 * MIB)
    model = here.models[0]
    assert model.weights + model.mapped == (191 - 80) * MIB
    assert here.file_backed == model.file_backed == model.weights
    assert "in the page cache" in here.arithmetic()
    here.check(here.needed)
    with pytest.raises(MemoryPlanError):
        here.check(here.needed - 1)


def test_only_what_an_idle_server_has_not_may_push_out_mapped_weights(manifest: Manifest) -> None:
    small = Packed(onnxruntime.__version__, instruction_sets(), 90 * MIB, 1, replaced=80 * MIB)
    plan = planned([replace(manifest, packed=small)], 4096 * MIB, kv_bytes=10 * MIB)
    assert plan.total - plan.needed == plan.file_backed < (32 + 64 + 10) * MIB
    files = {**manifest.files, "model.onnx.data": FileRecord("0" * 64, 500 * MIB)}
    large = planned([replace(manifest, files=files, packed=small)], 4096 * MIB, kv_bytes=10 * MIB)
    assert large.total - large.needed == (32 + 64 + 10) * MIB < large.file_backed
    assert planned([manifest], 4096 * MIB).needed == planned([manifest], 4096 * MIB).total


def test_prompts_are_computed_in_smaller_chunks_where_memory_is_short(manifest: Manifest) -> None:
    wide = replace(manifest, shape=replace(manifest.shape, intermediate_size=20_000))
    roomy = planned([wide], 64 << 30, kv_bytes=MIB)
    assert roomy.prefill_chunk == ENGINE.prefill_chunk
    short = planned([wide], roomy.needed - 1, kv_bytes=MIB)
    assert short.prefill_chunk == ENGINE.prefill_chunk // 2
    assert short.needed < roomy.needed
    assert planned([wide], 1, kv_bytes=MIB).prefill_chunk == ENGINE.prefill_chunk // 4


@pytest.mark.parametrize("change", [{"onnxruntime": "0.1"}, {"instructions": ("x86_64", "mmx")}])
def test_weights_packed_elsewhere_are_packed_again_in_anonymous_memory(manifest: Manifest, change: Any) -> None:
    files = {**manifest.files, "model.onnx.data": FileRecord("0" * 64, 190 * MIB)}
    packed = replace(Packed(onnxruntime.__version__, instruction_sets(), 90 * MIB, 1, replaced=80 * MIB), **change)
    elsewhere = planned([replace(manifest, files=files, packed=packed)], 4096 * MIB)
    assert elsewhere.file_backed == 0
    assert elsewhere.models[0] == planned([manifest], 4096 * MIB).models[0]


def test_the_largest_weight_fits_while_it_is_compared_with_its_copy(manifest: Manifest) -> None:
    packed = Packed(onnxruntime.__version__, instruction_sets(), 90 * MIB, largest=700 * MIB, replaced=0)
    assert planned([replace(manifest, packed=packed)], 4096 * MIB).models[0].workspace == 700 * MIB
