"""Adapter directories that we write are what others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from export.checkpoint import open_checkpoint
from export.checkpoint.adapter import apply_adapter
from export.synthetic import TINY, make_checkpoint
from export.synthetic_adapter import llama_guard_format
from training.adapter_files import write_guard, write_lora, write_safetensors


def test_safetensors_are_read_back_by_the_reference_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors: dict[str, npt.NDArray[Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([[1.5], [-2.0]], np.float16),
    }
    write_safetensors(path, tensors)
    read = load_file(path)
    assert list(read) == ["a", "b"]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype
    first = path.read_bytes()
    write_safetensors(path, dict(reversed(tensors.items())))
    assert path.read_bytes() == first


def test_an_adapter_is_merged_by_the_exporter(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "base")))
    rng = np.random.default_rng(0)
    name, hidden, rank, alpha = "model.layers.1.self_attn.q_proj", TINY.hidden_size, 2, 6
    a = rng.normal(size=(rank, hidden)).astype(np.float16)
    b = rng.normal(size=(hidden, rank)).astype(np.float16)
    guard_format = llama_guard_format(checkpoint.tokenizer_json)
    ids = guard_format.answer.head_token_ids()
    rows = rng.normal(size=(len(ids), hidden)).astype(np.float32)
    write_lora(tmp_path / "adapter", {name: (a, b)}, rank, alpha, "base")
    write_guard(tmp_path / "adapter", guard_format, ids, rows)
    adapted = apply_adapter(checkpoint, tmp_path / "adapter")
    assert adapted.guard_format == guard_format
    np.testing.assert_array_equal(adapted.tensors.read("lm_head.weight")[list(ids)], rows)
    merged = checkpoint.tensors.read(f"{name}.weight") + alpha / rank * b.astype(np.float32) @ a.astype(np.float32)
    np.testing.assert_allclose(adapted.tensors.read(f"{name}.weight"), merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [1e6, float("nan")])
def test_a_weight_beyond_float16_is_refused(tmp_path: Path, bad: float) -> None:
    a, b = np.full((1, 4), bad), np.zeros((4, 1))
    with pytest.raises(ValueError, match="float16"):
        write_lora(tmp_path, {"model.layers.0.mlp.up_proj": (a, b)}, 1, 1, "base")


def test_the_config_has_peft_field_names(tmp_path: Path) -> None:
    write_lora(tmp_path, {"model.layers.0.mlp.up_proj": (np.zeros((2, 4)), np.zeros((4, 2)))}, 2, 4, "org/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    assert config["target_modules"] == ["up_proj"]
