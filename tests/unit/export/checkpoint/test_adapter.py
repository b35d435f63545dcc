from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from export.checkpoint import lora
from export.checkpoint.adapter import apply_adapter
from export.checkpoint.huggingface import open_directory
from export.checkpoint.model import Checkpoint
from export.spec import ModelSpec
from export.synthetic import TINY
from export.synthetic_adapter import llama_guard_format, make_adapter
from guard.errors import CheckpointError, InvalidInputError, UnsupportedError

from .test_huggingface import change

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
PREFIX = "base_model.model."


@pytest.fixture
def base(tiny: Path) -> Checkpoint:
    return open_directory(tiny)


def change_lora(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    edit(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_lora_is_merged(base: Checkpoint, tiny_adapter: Path) -> None:
    merged = apply_adapter(base, tiny_adapter).tensors
    stored = safetensors.numpy.load_file(tiny_adapter / "adapter_model.safetensors")
    for name in TINY.expected_tensors():
        expected = base.tensors.read(name)
        module = PREFIX + name.removesuffix(".weight")
        if module.endswith("_proj"):
            expected = expected + 2.0 * (stored[f"{module}.lora_B.weight"] @ stored[f"{module}.lora_A.weight"])
            assert not np.allclose(expected, base.tensors.read(name), atol=0.01)
        np.testing.assert_allclose(merged.read(name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [f"{Q}.weight", f"{DOWN}.weight", HEAD])
@pytest.mark.parametrize("rows", [(0, 5), (5, 64), (63, 64), (7, 7), (260, 300), (0, 1000)])
def test_row_slices_have_the_same_bits(
    base: Checkpoint, tiny_adapter: Path, name: str, rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = apply_adapter(base, tiny_adapter).tensors
    whole = merged.read(name)
    monkeypatch.setattr(lora, "_BLOCK_ITEMS", 3 * 64)  # another blocking may not change a bit either
    np.testing.assert_array_equal(merged.read(name, slice(*rows)), whole[slice(*rows)])


def test_rank_stabilized_scale(base: Checkpoint, adapter_copy: Path) -> None:
    plain = apply_adapter(base, adapter_copy).tensors.read(f"{Q}.weight")
    change(adapter_copy, "adapter_config.json", use_rslora=True)
    stabilized = apply_adapter(base, adapter_copy).tensors.read(f"{Q}.weight")
    original = base.tensors.read(f"{Q}.weight")
    np.testing.assert_allclose(stabilized - original, 2.0 * (plain - original), rtol=1e-3, atol=1e-6)  # sqrt(4) = 2


def test_guard_head_rows_replace_and_untie(base: Checkpoint, tiny_adapter: Path) -> None:
    adapted = apply_adapter(base, tiny_adapter)
    ids = json.loads((tiny_adapter / "guard.json").read_text())["head_token_ids"]
    rows = safetensors.numpy.load_file(tiny_adapter / "guard_head.safetensors")["weight"]
    expected = base.tensors.read(EMBEDDING)
    expected[ids] = rows
    np.testing.assert_array_equal(adapted.tensors.read(HEAD), expected)
    np.testing.assert_array_equal(adapted.tensors.read(EMBEDDING), base.tensors.read(EMBEDDING))
    assert adapted.spec == replace(TINY, tied_embeddings=False)
    assert adapted.tensors.shape(HEAD) == (512, 64)
    assert adapted.tensors.names() == base.tensors.names()
    assert adapted.guard_format == llama_guard_format(base.tokenizer_json)


def test_unsorted_head_ids_keep_their_rows(base: Checkpoint, adapter_copy: Path) -> None:
    before = apply_adapter(base, adapter_copy).tensors.read(HEAD)
    ids = json.loads((adapter_copy / "guard.json").read_text())["head_token_ids"]
    rows = safetensors.numpy.load_file(adapter_copy / "guard_head.safetensors")["weight"]
    change(adapter_copy, "guard.json", head_token_ids=ids[::-1])
    safetensors.numpy.save_file({"weight": rows[::-1].copy()}, adapter_copy / "guard_head.safetensors")
    np.testing.assert_array_equal(apply_adapter(base, adapter_copy).tensors.read(HEAD), before)


def test_the_source_names_the_adapters_files(base: Checkpoint, tiny_adapter: Path) -> None:
    source = apply_adapter(base, tiny_adapter).source
    assert source.adapter == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(tiny_adapter.iterdir())
    }
    assert source.files == base.source.files


def test_each_half_works_alone(base: Checkpoint, tmp_path: Path) -> None:
    only_lora = make_adapter(tmp_path / "lora", TINY, base.tokenizer_json, guard=False, rank=1)
    adapted = apply_adapter(base, only_lora)
    assert (adapted.spec, adapted.guard_format) == (TINY, None)
    only_guard = make_adapter(tmp_path / "guard", TINY, base.tokenizer_json, lora=False)
    adapted = apply_adapter(base, only_guard)
    np.testing.assert_array_equal(adapted.tensors.read(f"{Q}.weight"), base.tensors.read(f"{Q}.weight"))
    (only_guard / "guard_head.safetensors").unlink()
    change(only_guard, "guard.json", head_token_ids=[])
    adapted = apply_adapter(base, only_guard)
    assert adapted.spec == TINY
    assert adapted.guard_format is not None
    np.testing.assert_array_equal(adapted.tensors.read(HEAD), base.tensors.read(EMBEDDING))
    with pytest.raises(InvalidInputError, match="out"):
        make_adapter(tmp_path / "lora", TINY, base.tokenizer_json)


def test_all_linear_and_fields_that_do_not_matter(base: Checkpoint, adapter_copy: Path) -> None:
    change(
        adapter_copy,
        "adapter_config.json",
        target_modules="all-linear",
        lora_dropout=0.05,
        peft_version="0.18.0",
        qalora_group_size=16,
        base_model_name_or_path="org/name",
        loftq_config={},
        rank_pattern={},
        use_dora=False,
        lora_alpha=8.0,
    )
    apply_adapter(base, adapter_copy)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"use_dora": True}, UnsupportedError, "use_dora"),
        ({"bias": "all"}, UnsupportedError, "bias"),
        ({"lora_bias": True}, UnsupportedError, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedError, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, UnsupportedError, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, UnsupportedError, "alpha_pattern"),
        ({"fan_in_fan_out": True}, UnsupportedError, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2]]}, UnsupportedError, "layer_replication"),
        ({"trainable_token_indices": [1]}, UnsupportedError, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, UnsupportedError, "init_lora_weights"),
        ({"something_new": "on"}, UnsupportedError, "something_new"),
        ({"peft_type": "IA3"}, UnsupportedError, "peft_type"),
        ({"peft_type": ...}, CheckpointError, "peft_type"),
        ({"task_type": "SEQ_CLS"}, UnsupportedError, "task_type"),
        ({"target_modules": ["q_proj", "lm_head"]}, UnsupportedError, "lm_head"),
        ({"target_modules": r".*_proj"}, UnsupportedError, "target_modules"),
        ({"target_modules": []}, UnsupportedError, "target_modules"),
        ({"target_modules": ["q_proj"]}, CheckpointError, "target_modules lacks"),
        ({"r": 0}, CheckpointError, "r: "),
        ({"r": True}, CheckpointError, "r: "),
        ({"r": 8}, CheckpointError, r"lora_A is \(4, 128\), expected \(8, 128\)"),
        ({"lora_alpha": 0}, CheckpointError, "lora_alpha"),
        ({"lora_alpha": True}, CheckpointError, "lora_alpha"),
        ({"use_rslora": 1}, CheckpointError, "use_rslora"),
    ],
)
def test_lora_settings_are_checked(
    base: Checkpoint, adapter_copy: Path, changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    change(adapter_copy, "adapter_config.json", **changes)
    with pytest.raises(error, match=named):
        apply_adapter(base, adapter_copy)


class TestLoraTensors:
    def check(self, base: Checkpoint, directory: Path, error: type[Exception], named: str) -> None:
        with pytest.raises(error, match=named):
            apply_adapter(base, directory)

    def test_a_missing_half(self, base: Checkpoint, adapter_copy: Path) -> None:
        change_lora(adapter_copy, lambda tensors: tensors.pop(f"{PREFIX}{Q}.lora_B.weight"))
        self.check(base, adapter_copy, CheckpointError, r"q_proj\.lora_B is missing")

    def test_a_wrong_shape(self, base: Checkpoint, adapter_copy: Path) -> None:
        wrong = {f"{PREFIX}{Q}.lora_B.weight": np.zeros((63, 4), np.float32)}
        change_lora(adapter_copy, lambda tensors: tensors.update(wrong))
        self.check(base, adapter_copy, CheckpointError, r"q_proj\.lora_B is \(63, 4\)")

    def test_a_layer_the_model_lacks(self, base: Checkpoint, adapter_copy: Path) -> None:
        extra = {f"{PREFIX}model.layers.2.mlp.up_proj.lora_A.weight": np.zeros((4, 64), np.float32)}
        change_lora(adapter_copy, lambda tensors: tensors.update(extra))
        self.check(base, adapter_copy, CheckpointError, r"model\.layers\.2\.mlp\.up_proj")

    @pytest.mark.parametrize(
        "name",
        [
            "model.lm_head.lora_A.weight",
            f"{Q}.lora_magnitude_vector",
            f"{Q}.base_layer.weight",
            "model.embed_tokens.lora_embedding_A",
        ],
    )
    def test_other_tensors(self, base: Checkpoint, adapter_copy: Path, name: str) -> None:
        change_lora(adapter_copy, lambda tensors: tensors.update({PREFIX + name: np.zeros((4, 64), np.float32)}))
        self.check(base, adapter_copy, UnsupportedError, name.replace(".", r"\."))

    def test_a_target_without_tensors(self, base: Checkpoint, adapter_copy: Path) -> None:
        def edit(tensors: dict[str, Any]) -> None:
            for name in [name for name in tensors if ".up_proj." in name]:
                del tensors[name]

        change_lora(adapter_copy, edit)
        self.check(base, adapter_copy, CheckpointError, "target module up_proj")

    def test_no_tensors(self, base: Checkpoint, adapter_copy: Path) -> None:
        change_lora(adapter_copy, lambda tensors: tensors.clear())
        change(adapter_copy, "adapter_config.json", target_modules="all-linear")
        self.check(base, adapter_copy, CheckpointError, "no LoRA tensors")

    def test_a_pickle(self, base: Checkpoint, adapter_copy: Path) -> None:
        (adapter_copy / "adapter_model.safetensors").rename(adapter_copy / "adapter_model.bin")
        self.check(base, adapter_copy, UnsupportedError, r"adapter_model\.bin: pickle")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head_token_ids": [0, 512]}, "head_token_ids"),
        ({"head_token_ids": [0, 0]}, "head_token_ids.*twice"),
        ({"head_token_ids": "all"}, "head_token_ids"),
        ({"head_token_ids": [True]}, "head_token_ids"),
        ({"head_token_ids": [1, 2]}, r"guard_head\.safetensors: expected .*\[2, 64\]"),
        ({"head_token_ids": []}, r"guard_head\.safetensors"),
        ({"head_token_ids": ...}, "head_token_ids"),
        ({"more": 1}, "expected the fields"),
        ({"format": {}}, r"guard\.json: format"),
    ],
)
def test_guard_files_are_checked(base: Checkpoint, adapter_copy: Path, changes: dict[str, Any], named: str) -> None:
    change(adapter_copy, "guard.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        apply_adapter(base, adapter_copy)


def test_answer_tokens_must_be_in_the_vocabulary(base: Checkpoint, adapter_copy: Path) -> None:
    value = json.loads((adapter_copy / "guard.json").read_text())
    value["format"]["answer"]["safe"] = 512
    (adapter_copy / "guard.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"format\.answer"):
        apply_adapter(base, adapter_copy)


@pytest.mark.parametrize("name", ["weights", "weight"])
def test_the_head_file_holds_one_tensor(base: Checkpoint, adapter_copy: Path, name: str) -> None:
    tensors = {name: np.zeros((20, 64), np.float32), "other": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(tensors, adapter_copy / "guard_head.safetensors")
    with pytest.raises(CheckpointError, match="the one tensor 'weight'"):
        apply_adapter(base, adapter_copy)


def test_what_is_no_adapter(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither adapter_config\.json nor guard\.json"):
        apply_adapter(base, tmp_path)
    with pytest.raises(CheckpointError, match="not a directory"):
        apply_adapter(base, tmp_path / "nothing")


def test_the_made_format_needs_single_tokens(base: Checkpoint) -> None:
    tokenizer = json.loads(base.tokenizer_json)
    tokenizer["model"]["merges"] = []
    tokenizer["model"]["ignore_merges"] = False
    with pytest.raises(InvalidInputError, match="tokens"):
        llama_guard_format(json.dumps(tokenizer).encode())


def test_an_untied_base_keeps_its_own_head(base: Checkpoint, tiny_adapter: Path) -> None:
    """The overlay works on what the base reads as its head, tied or not."""

    class Untied:
        def names(self) -> frozenset[str]:
            return base.tensors.names()

        def shape(self, name: str) -> tuple[int, ...]:
            return base.tensors.shape(name)

        def read(self, name: str, rows: slice | None = None) -> Any:
            return base.tensors.read(name, rows) + (100 if name == HEAD else 0)

    spec: ModelSpec = replace(TINY, tied_embeddings=False)
    adapted = apply_adapter(replace(base, spec=spec, tensors=Untied()), tiny_adapter)
    assert adapted.spec == spec
    ids = json.loads((tiny_adapter / "guard.json").read_text())["head_token_ids"]
    head = adapted.tensors.read(HEAD)
    assert np.abs(head[ids]).max() < 10
    assert np.delete(head, ids, axis=0).min() > 90
