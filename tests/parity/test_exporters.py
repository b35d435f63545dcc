"""The direct exporter, optimum's exporter and transformers give the same logits for the same checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from export.checkpoint import open_checkpoint
from export.parity import kl_divergence
from export.pipeline import ExportRequest, export_model
from export.reference import reference_logits
from export.spec import ModelSpec
from export.synthetic import TINY, make_checkpoint
from guard.bundle import open_bundle
from guard.engine.kv_cache import KvCache
from guard.engine.runner import Runner, load_runner

transformers = pytest.importorskip("transformers")
pytest.importorskip("optimum.exporters.onnx")
torch = pytest.importorskip("torch")

Float32 = npt.NDArray[np.float32]

#: What the issue asks of two float32 exports; the usual difference is a thousand times smaller.
BOUND = 1e-3
SPECS = {
    "tied": TINY,
    "untied": replace(TINY, tied_embeddings=False),
    "one KV head": replace(TINY, kv_heads=1),
    "a KV head per head": replace(TINY, kv_heads=4),
    "plain rope, odd widths": replace(TINY, hidden_size=96, heads=6, intermediate_size=144, rope_scaling=None),
}
LENGTH = 70


def token_ids(spec: ModelSpec) -> list[int]:
    ids: list[int] = np.random.default_rng(7).integers(0, spec.vocab_size, LENGTH).tolist()
    return ids


def transformers_logits(checkpoint: Path, ids: Sequence[int]) -> Float32:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their deprecations
        model: Any = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        with torch.no_grad():
            logits: Float32 = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def runner_logits(runner: Runner, ids: Sequence[int], chunks: Sequence[int]) -> Float32:
    cache, parts, done = KvCache(runner.shape, len(ids)), [], 0
    for count in chunks:
        parts.append(runner.forward(cache, ids[done : done + count], range(count)))
        done += count
    return np.concatenate(parts)


@pytest.fixture(scope="module", params=SPECS.values(), ids=list(SPECS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("parity") / "tiny", request.param)


@pytest.mark.parametrize("exporter", ["direct", "optimum"])
def test_float32_exports_equal_transformers(checkpoint: Path, tmp_path: Path, exporter: Any) -> None:
    export_model(ExportRequest(str(checkpoint), tmp_path / "out", "instruct", "none", exporter=exporter))
    runner = load_runner(open_bundle(tmp_path / "out"), threads=2)
    spec = open_checkpoint(str(checkpoint)).spec
    ids = token_ids(spec)
    expected = transformers_logits(checkpoint, ids)
    assert expected.std() > 0.3
    for chunks in ([LENGTH], [33, 20, 17], [LENGTH - 3, 1, 1, 1]):
        assert np.abs(runner_logits(runner, ids, chunks) - expected).max() < BOUND, chunks


def test_the_numpy_reference_equals_transformers(checkpoint: Path) -> None:
    source = open_checkpoint(str(checkpoint))
    ids = token_ids(source.spec)
    (logits,) = reference_logits(source.spec, source.tensors, [ids], [range(LENGTH)])
    assert np.abs(logits - transformers_logits(checkpoint, ids)).max() < BOUND


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.003), ("int4", 0.15)])
def test_quantized_exports_report_their_distance(
    checkpoint: Path, tmp_path: Path, quantization: str, bound: float, record_property: Any
) -> None:
    export_model(ExportRequest(str(checkpoint), tmp_path / "out", "instruct", quantization))
    runner = load_runner(open_bundle(tmp_path / "out"), threads=2)
    ids = token_ids(open_checkpoint(str(checkpoint)).spec)
    expected = transformers_logits(checkpoint, ids)
    actual = runner_logits(runner, ids, [50, 20])
    kl = float(kl_divergence(expected, actual).mean())
    record_property("mean_kl", kl)
    record_property("max_abs_logit_difference", float(np.abs(actual - expected).max()))
    assert 0 < kl < bound


def test_optimum_exports_twice_the_same_bytes(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny")
    for out in ("first", "second"):
        export_model(ExportRequest(str(source), tmp_path / out, "instruct", "none", exporter="optimum"))
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_merged_adapter_goes_through_optimum_too(tmp_path: Path) -> None:
    from export.synthetic_adapter import make_adapter

    source = make_checkpoint(tmp_path / "tiny")
    adapter = make_adapter(tmp_path / "adapter", TINY, (source / "tokenizer.json").read_bytes())
    runners = []
    for exporter in ("direct", "optimum"):
        request = ExportRequest(
            str(source),
            tmp_path / exporter,
            "guard",
            "none",
            adapter=adapter,
            exporter=exporter,
        )
        export_model(request)
        runners.append(load_runner(open_bundle(tmp_path / exporter), threads=2))
    direct, optimum = runners
    ids = token_ids(TINY)
    tokens = list(direct.rows)
    assert len(tokens) < len(optimum.rows) == TINY.vocab_size
    pruned = runner_logits(direct, ids, [LENGTH])[:, [direct.rows[token] for token in tokens]]
    full = runner_logits(optimum, ids, [LENGTH])[:, [optimum.rows[token] for token in tokens]]
    assert np.abs(pruned - full).max() < BOUND
