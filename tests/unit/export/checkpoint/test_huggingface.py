from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from export.checkpoint.huggingface import open_directory
from export.checkpoint.model import Checkpoint
from export.synthetic import TINY
from guard.bundle.manifest import GenerationDefaults
from guard.errors import CheckpointError, UnsupportedError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def change(directory: Path, file: str, **changes: Any) -> None:
    """Set fields of a JSON file, or take them out when the new value is ``...``."""
    path = directory / file
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: item for name, item in value.items() if item is not ...}))


def change_tensors(directory: Path, changes: dict[str, Any]) -> None:
    """Replace, add, or (``None``) take out tensors."""
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def opened(directory: Path, file: str, **changes: Any) -> Checkpoint:
    change(directory, file, **changes)
    return open_directory(directory)


def test_a_whole_checkpoint(tiny: Path) -> None:
    checkpoint = open_directory(tiny)
    assert checkpoint.spec == TINY
    assert checkpoint.tokens.bos == 496
    assert checkpoint.tokens.stop == (497, 504, 505)
    assert checkpoint.tokens.control["<|eot_id|>"] == 505
    assert len(checkpoint.tokens.control) == 16
    assert checkpoint.generation == GenerationDefaults(temperature=0.6, top_p=0.9, top_k=0)
    assert checkpoint.chat_template is not None
    assert "Cutting Knowledge Date" in checkpoint.chat_template
    assert checkpoint.guard_format is None
    assert checkpoint.tokenizer_json == (tiny / "tokenizer.json").read_bytes()
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tiny.iterdir()}
    assert (checkpoint.source.kind, checkpoint.source.name, checkpoint.source.revision) == ("huggingface", "tiny", None)
    assert checkpoint.source.files == files


def test_tensors_are_the_files(tiny: Path) -> None:
    tensors = open_directory(tiny).tensors
    stored = safetensors.numpy.load_file(tiny / "model.safetensors")
    assert tensors.names() == stored.keys() | {HEAD}
    for name, tensor in stored.items():
        assert tensors.shape(name) == tensor.shape
        np.testing.assert_array_equal(tensors.read(name), tensor.astype(np.float32))
    np.testing.assert_array_equal(tensors.read(HEAD, slice(3, 9)), stored[EMBEDDING][3:9].astype(np.float32))
    with pytest.raises(CheckpointError, match="tensor other is missing"):
        tensors.read("other")


def test_name_and_revision_can_be_given(tiny: Path) -> None:
    source = open_directory(tiny, name="org/tiny", revision="abc").source
    assert (source.name, source.revision) == ("org/tiny", "abc")


def test_a_missing_tensor_is_named(tiny_copy: Path) -> None:
    """Failure test 20."""
    change_tensors(tiny_copy, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        open_directory(tiny_copy)


def test_a_wrong_shape_is_named(tiny_copy: Path) -> None:
    """Failure test 20."""
    change_tensors(tiny_copy, {"model.norm.weight": np.ones(63, np.float16)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \(63,\), config says \(64,\)"):
        open_directory(tiny_copy)


def test_a_tensor_nobody_knows_is_refused(tiny_copy: Path) -> None:
    change_tensors(tiny_copy, {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float16)})
    with pytest.raises(UnsupportedError, match=r"q_proj\.bias"):
        open_directory(tiny_copy)


def test_old_rotary_buffers_are_harmless(tiny_copy: Path) -> None:
    change_tensors(tiny_copy, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in open_directory(tiny_copy).tensors.names()


def test_a_stored_head_must_equal_the_embedding_it_is_tied_to(tiny_copy: Path) -> None:
    embedding = safetensors.numpy.load_file(tiny_copy / "model.safetensors")[EMBEDDING]
    change_tensors(tiny_copy, {HEAD: embedding})
    open_directory(tiny_copy)
    other = embedding.copy()
    other[-1, -1] += ml_dtypes.bfloat16(1)
    change_tensors(tiny_copy, {HEAD: other})
    with pytest.raises(UnsupportedError, match="lm_head"):
        open_directory(tiny_copy)
    change_tensors(tiny_copy, {HEAD: embedding[:-1]})
    with pytest.raises(UnsupportedError, match="lm_head"):
        open_directory(tiny_copy)


def test_an_untied_model_needs_its_head(tiny_copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        opened(tiny_copy, "config.json", tie_word_embeddings=False)


def test_an_unsupported_config_is_refused_before_anything_else_is_read(tiny_copy: Path) -> None:
    for path in tiny_copy.iterdir():
        if path.name != "config.json":
            path.unlink()
    with pytest.raises(UnsupportedError, match="attention_bias"):
        opened(tiny_copy, "config.json", attention_bias=True)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny_copy: Path, file: str) -> None:
    (tiny_copy / file).unlink()
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        open_directory(tiny_copy)


def test_a_sentencepiece_tokenizer_is_refused_by_name(tiny_copy: Path) -> None:
    (tiny_copy / "tokenizer.json").rename(tiny_copy / "tokenizer.model")
    with pytest.raises(UnsupportedError, match=r"tokenizer\.model"):
        open_directory(tiny_copy)


class TestTokens:
    def test_bos_comes_from_the_tokenizer_first(self, tiny_copy: Path) -> None:
        change(tiny_copy, "config.json", bos_token_id=3)
        assert open_directory(tiny_copy).tokens.bos == 496
        token = {"content": "<|python_tag|>", "special": True}
        assert opened(tiny_copy, "tokenizer_config.json", bos_token=token).tokens.bos == 506
        assert opened(tiny_copy, "tokenizer_config.json", bos_token=None).tokens.bos is None
        (tiny_copy / "special_tokens_map.json").write_text('{"bos_token": "<|eot_id|>"}')
        assert opened(tiny_copy, "tokenizer_config.json", bos_token=...).tokens.bos == 505
        (tiny_copy / "special_tokens_map.json").unlink()
        assert open_directory(tiny_copy).tokens.bos == 3
        assert opened(tiny_copy, "config.json", bos_token_id=...).tokens.bos is None

    def test_stop_is_the_union_of_both_configs(self, tiny_copy: Path) -> None:
        change(tiny_copy, "config.json", eos_token_id=505)
        assert opened(tiny_copy, "generation_config.json", eos_token_id=[497, 505]).tokens.stop == (497, 505)
        (tiny_copy / "generation_config.json").unlink()
        assert open_directory(tiny_copy).tokens.stop == (505,)
        assert opened(tiny_copy, "config.json", eos_token_id=None).tokens.stop == (505,)  # tokenizer_config's eos_token
        with pytest.raises(CheckpointError, match="eos_token_id"):
            opened(tiny_copy, "tokenizer_config.json", eos_token=None)

    @pytest.mark.parametrize("value", ["<s>", 5, ["<|eot_id|>"]])
    def test_an_unknown_bos_is_refused(self, tiny_copy: Path, value: Any) -> None:
        with pytest.raises(CheckpointError, match="bos_token"):
            opened(tiny_copy, "tokenizer_config.json", bos_token=value)

    @pytest.mark.parametrize("value", [512, -1, "505", [505, None], True])
    def test_ids_outside_the_vocabulary_are_refused(self, tiny_copy: Path, value: Any) -> None:
        with pytest.raises(CheckpointError, match="eos_token_id"):
            opened(tiny_copy, "config.json", eos_token_id=value)


class TestChatTemplate:
    def test_its_own_file_wins(self, tiny_copy: Path) -> None:
        (tiny_copy / "chat_template.jinja").write_bytes(b"own \r\n file")
        checkpoint = open_directory(tiny_copy)
        assert checkpoint.chat_template == "own \r\n file"
        assert "chat_template.jinja" in checkpoint.source.files

    def test_the_default_of_named_templates(self, tiny_copy: Path) -> None:
        named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
        assert opened(tiny_copy, "tokenizer_config.json", chat_template=named).chat_template == "D"
        with pytest.raises(UnsupportedError, match="default"):
            opened(tiny_copy, "tokenizer_config.json", chat_template=named[:1])

    def test_none(self, tiny_copy: Path) -> None:
        assert opened(tiny_copy, "tokenizer_config.json", chat_template=...).chat_template is None

    @pytest.mark.parametrize("value", [5, ["x"], [{"name": "default"}], [{"name": "a", "template": "b"}] * 2])
    def test_other_forms_are_refused(self, tiny_copy: Path, value: Any) -> None:
        with pytest.raises(CheckpointError, match="chat_template"):
            opened(tiny_copy, "tokenizer_config.json", chat_template=value)

    def test_it_must_be_utf8(self, tiny_copy: Path) -> None:
        (tiny_copy / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(CheckpointError, match="UTF-8"):
            open_directory(tiny_copy)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"do_sample": False, "temperature": 0.7}, GenerationDefaults(0.0, 1.0, 0)),
        ({"do_sample": True, "top_k": 40}, GenerationDefaults(1.0, 1.0, 40)),
        ({"temperature": 0.5, "top_p": 0.8}, GenerationDefaults(0.5, 0.8, 0)),
    ],
)
def test_generation_defaults(tiny_copy: Path, settings: dict[str, Any], expected: GenerationDefaults | None) -> None:
    (tiny_copy / "generation_config.json").write_text(json.dumps(settings))
    assert open_directory(tiny_copy).generation == expected


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"temperature": "0.5"}, {"top_p": 1.5}, {"top_k": -1}, {"do_sample": "yes"}]
)
def test_broken_generation_settings_are_refused(tiny_copy: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(settings))):
        opened(tiny_copy, "generation_config.json", **settings)
