from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from export.checkpoint.gguf import open_gguf
from export.checkpoint.huggingface import open_directory
from export.checkpoint.model import Checkpoint
from export.graph.rope import inverse_frequencies
from export.spec import Llama3RopeScaling
from export.synthetic import TINY, make_checkpoint
from guard.errors import CheckpointError, UnsupportedError

from .gguf_files import GgufContent, llama_content

F32 = gguf.GGMLQuantizationType.F32


@pytest.fixture
def plain(tiny: Path) -> Checkpoint:
    """The tiny checkpoint without RoPE scaling, which GGUF keeps in a tensor of its own."""
    checkpoint = open_directory(tiny)
    return replace(checkpoint, spec=replace(checkpoint.spec, rope_scaling=None))


@pytest.fixture
def content(plain: Checkpoint) -> GgufContent:
    return llama_content(plain)


def opened(content: GgufContent, tmp_path: Path) -> Checkpoint:
    return open_gguf(content.write(tmp_path / "x.gguf"))


def test_the_same_model_as_the_directory(plain: Checkpoint, content: GgufContent, tmp_path: Path) -> None:
    read = opened(content, tmp_path)
    assert read.spec == plain.spec
    assert read.tokens == plain.tokens
    assert read.chat_template == plain.chat_template
    assert read.generation is None
    assert read.tensors.names() == plain.tensors.names()
    for name in plain.tensors.names():
        np.testing.assert_array_equal(read.tensors.read(name), plain.tensors.read(name))
    digest = hashlib.sha256((tmp_path / "x.gguf").read_bytes()).hexdigest()
    assert (read.source.kind, read.source.name, read.source.files) == ("gguf", "x.gguf", {"x.gguf": digest})


@pytest.mark.parametrize("rows", [(0, 64), (0, 1), (15, 17), (5, 40), (16, 32), (63, 64), (7, 7), (60, 99)])
@pytest.mark.parametrize("module", ["q_proj", "k_proj", "v_proj"])
def test_rows_of_permuted_tensors(
    plain: Checkpoint, content: GgufContent, tmp_path: Path, rows: tuple[int, int], module: str
) -> None:
    name = f"model.layers.1.self_attn.{module}.weight"
    expected = plain.tensors.read(name)[slice(*rows)]
    np.testing.assert_array_equal(opened(content, tmp_path).tensors.read(name, slice(*rows)), expected)


def test_an_untied_and_quantized_model(tmp_path: Path) -> None:
    spec = replace(TINY, tied_embeddings=False, rope_scaling=None)
    checkpoint = open_directory(make_checkpoint(tmp_path / "untied", spec))
    content = llama_content(checkpoint, gguf.GGMLQuantizationType.Q8_0)
    read = opened(content, tmp_path)
    assert not read.spec.tied_embeddings
    for name in checkpoint.tensors.names():
        np.testing.assert_allclose(read.tensors.read(name), checkpoint.tensors.read(name), atol=0.02)


def rope_factors(scaling: Llama3RopeScaling) -> np.ndarray[Any, np.dtype[np.float32]]:
    """By how much llama.cpp's converter divides each frequency."""
    scaled = replace(TINY, rope_scaling=scaling)
    plain = replace(TINY, rope_scaling=None)
    return (inverse_frequencies(plain) / inverse_frequencies(scaled)).astype(np.float32)


class TestRopeScaling:
    def with_factors(self, content: GgufContent, factors: Any) -> GgufContent:
        content.tensors["rope_freqs.weight"] = (np.asarray(factors, np.float32), F32)
        return content

    @pytest.mark.parametrize("factor", [8.0, 32.0])
    def test_llama_3_is_recovered(self, content: GgufContent, tmp_path: Path, factor: float) -> None:
        scaling = Llama3RopeScaling(factor, 1.0, 4.0, 8192)
        assert opened(self.with_factors(content, rope_factors(scaling)), tmp_path).spec.rope_scaling == scaling

    def test_another_original_length_is_read(self, content: GgufContent, tmp_path: Path) -> None:
        scaling = Llama3RopeScaling(8.0, 1.0, 4.0, 256)
        content.metadata["llama.rope.scaling.original_context_length"] = 256
        assert opened(self.with_factors(content, rope_factors(scaling)), tmp_path).spec.rope_scaling == scaling

    def test_factors_of_one_scale_nothing(self, content: GgufContent, tmp_path: Path) -> None:
        assert opened(self.with_factors(content, np.ones(8)), tmp_path).spec.rope_scaling is None

    def test_other_factors_are_refused(self, content: GgufContent, tmp_path: Path) -> None:
        other = rope_factors(Llama3RopeScaling(8.0, 1.0, 8.0, 8192))
        with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight"):
            opened(self.with_factors(content, other), tmp_path)

    @pytest.mark.parametrize("factors", [np.ones(7), np.full(8, 0.5), np.full(8, np.nan), np.full(8, np.inf)])
    def test_broken_factors_are_refused(self, content: GgufContent, tmp_path: Path, factors: Any) -> None:
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
            opened(self.with_factors(content, factors), tmp_path)

    def test_a_broken_original_length_is_refused(self, content: GgufContent, tmp_path: Path) -> None:
        content.metadata["llama.rope.scaling.original_context_length"] = 0
        with pytest.raises(CheckpointError, match="original_context_length"):
            opened(self.with_factors(content, np.ones(8)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"llama.expert_count": 8}, UnsupportedError, "expert_count"),
        ({"llama.rope.scaling.type": "yarn"}, UnsupportedError, "rope.scaling.type"),
        ({"llama.rope.scaling.factor": 2.0}, UnsupportedError, "rope.scaling.factor"),
        ({"llama.logit_scale": 0.5}, UnsupportedError, "logit_scale"),
        ({"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}, UnsupportedError, "dimension_count"),
        ({"llama.attention.value_length": 32}, UnsupportedError, "value_length"),
        ({"split.count": 3}, UnsupportedError, "split.count"),
        ({"llama.embedding_length": ...}, CheckpointError, "hidden_size"),
        ({"llama.block_count": 10**6}, CheckpointError, "num_hidden_layers"),
        ({"llama.attention.head_count": [4, 4]}, CheckpointError, "num_attention_heads"),
        ({"llama.block_count": 3}, CheckpointError, r"model\.layers\.2.*is missing"),
        ({"llama.vocab_size": 511}, CheckpointError, "token id 511"),
        ({"tokenizer.chat_template": 5}, CheckpointError, "chat_template"),
    ],
)
def test_metadata_is_checked(
    content: GgufContent, tmp_path: Path, changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    content.metadata = {key: value for key, value in (content.metadata | changes).items() if value is not ...}
    with pytest.raises(error, match=named):
        opened(content, tmp_path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"general\.architecture 'qwen2'"):
        open_gguf(tmp_path / "x.gguf")


def test_a_tensor_nobody_knows_is_refused(content: GgufContent, tmp_path: Path) -> None:
    content.tensors["blk.0.attn_q.bias"] = (np.zeros(64, np.float32), F32)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q\.bias"):
        opened(content, tmp_path)


def test_the_vocabulary_size_may_be_left_to_the_tokens(content: GgufContent, tmp_path: Path) -> None:
    del content.metadata["llama.vocab_size"]
    assert opened(content, tmp_path).spec.vocab_size == 512


def test_the_head_dimension_may_be_left_to_the_heads(content: GgufContent, tmp_path: Path) -> None:
    del content.metadata["llama.rope.dimension_count"]
    assert opened(content, tmp_path).spec.head_dim == 16
