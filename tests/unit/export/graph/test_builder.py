from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.graph.builder import build_graph
from export.graph.writer import DATA_FILE, MODEL_FILE
from export.quantize import parallel
from export.quantize.profile import PROFILES
from export.reference import reference_logits
from export.spec import ModelSpec
from export.synthetic import TINY
from guard.errors import UnsupportedError
from tests.unit.export.random_tensors import ODD, RandomTensors, run_graph

SPECS = {
    "tied, grouped": TINY,
    "untied, odd factors": ODD,
    "one KV head per head": replace(ODD, kv_heads=6),
    "one KV head": replace(TINY, kv_heads=1),
    "one layer": replace(TINY, layers=1),
}


def prompt(spec: ModelSpec, length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, length).tolist()  # type: ignore[no-any-return]


def expected(
    spec: ModelSpec, tensors: RandomTensors, ids: list[int]
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return reference_logits(spec, tensors, [ids], [range(len(ids))])[0]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("chunks", [None, [17, 12, 1, 1]], ids=["at once", "chunks and decode"])
def test_the_float_graph_equals_the_reference(tmp_path: Path, spec: ModelSpec, chunks: list[int] | None) -> None:
    tensors, ids = RandomTensors(spec), prompt(spec, 31)
    assert build_graph(spec, tensors, PROFILES["none"], tmp_path) == "none"
    logits = run_graph(tmp_path, spec, [ids], chunks)[0]
    np.testing.assert_allclose(logits, expected(spec, tensors, ids), atol=2e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_rotation_alone_changes_nothing(tmp_path: Path, spec: ModelSpec) -> None:
    """Merged rotations, folded norms and the online one before down_proj cancel out in float32."""
    profile = replace(PROFILES["none"], rotate=True, down_rotation=64)
    tensors, ids = RandomTensors(spec), prompt(spec, 20)
    assert build_graph(spec, tensors, profile, tmp_path) != "none"
    np.testing.assert_allclose(run_graph(tmp_path, spec, [ids])[0], expected(spec, tensors, ids), atol=1e-4)


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.045), ("int4", 0.3), ("int4-small", 0.4)])
@pytest.mark.parametrize("spec", [TINY, ODD], ids=["tiny", "odd"])
def test_quantized_graphs_stay_near_the_reference(tmp_path: Path, spec: ModelSpec, name: str, bound: float) -> None:
    tensors, ids = RandomTensors(spec), prompt(spec, 40)
    build_graph(spec, tensors, PROFILES[name], tmp_path)
    reference = expected(spec, tensors, ids)
    error = run_graph(tmp_path, spec, [ids], [33, 7])[0] - reference
    assert np.sqrt(np.square(error).mean()) < bound * reference.std()


@pytest.mark.parametrize("name", PROFILES)
def test_a_row_does_not_depend_on_its_batch(tmp_path: Path, name: str) -> None:
    tensors = RandomTensors(TINY)
    build_graph(TINY, tensors, PROFILES[name], tmp_path)
    rows = [prompt(TINY, 9, seed) for seed in range(3)]
    alone = np.concatenate([run_graph(tmp_path, TINY, [row]) for row in rows])
    np.testing.assert_allclose(run_graph(tmp_path, TINY, rows), alone, atol=1e-5)


@pytest.mark.parametrize("name", PROFILES)
def test_a_pruned_head_gives_those_rows_in_that_order(tmp_path: Path, name: str) -> None:
    tensors, ids, head = RandomTensors(ODD), prompt(ODD, 12), [200, 3, 299, 0]
    (tmp_path / "full").mkdir()
    (tmp_path / "pruned").mkdir()
    build_graph(ODD, tensors, replace(PROFILES[name], head="float32"), tmp_path / "full")
    build_graph(ODD, tensors, PROFILES[name], tmp_path / "pruned", head)
    full = run_graph(tmp_path / "full", ODD, [ids])
    np.testing.assert_allclose(run_graph(tmp_path / "pruned", ODD, [ids]), full[:, :, head], atol=1e-5)


@pytest.mark.parametrize("name", PROFILES)
def test_bytes_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for threads in (1, 4):
        monkeypatch.setattr(parallel, "available_cpus", lambda threads=threads: threads)
        parallel._pool.cache_clear()
        directory = tmp_path / str(threads)
        directory.mkdir()
        build_graph(ODD, RandomTensors(ODD), PROFILES[name], directory)
        contents.append([(directory / file).read_bytes() for file in (MODEL_FILE, DATA_FILE)])
    parallel._pool.cache_clear()
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", PROFILES)
def test_the_model_declares_the_interface(tmp_path: Path, name: str) -> None:
    build_graph(TINY, RandomTensors(TINY), PROFILES[name], tmp_path)
    graph = onnx.load(tmp_path / MODEL_FILE, load_external_data=False).graph
    past = [f"past_key_values.{layer}.{part}" for layer in range(TINY.layers) for part in ("key", "value")]
    assert {value.name for value in graph.input} == {
        "input_ids",
        "seqlens_k",
        "total_sequence_length",
        "logit_positions",
        *past,
    }
    presents = {name.replace("past_key_values", "present") for name in past}
    assert {value.name for value in graph.output} == {"logits", *presents}


def test_progress_rises_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    build_graph(ODD, RandomTensors(ODD), PROFILES["none"], tmp_path, progress=seen.append)
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1 and len(seen) == ODD.layers + 2


def test_a_width_that_no_block_divides_is_refused_by_name(tmp_path: Path) -> None:
    spec = replace(TINY, hidden_size=72)
    with pytest.raises(UnsupportedError, match="72 input channels"):
        build_graph(spec, RandomTensors(spec), PROFILES["int4"], tmp_path)
