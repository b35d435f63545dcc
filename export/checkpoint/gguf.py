"""A GGUF file of the Llama architecture as a verified Checkpoint, in Hugging Face's names and row order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from export.checkpoint.files import RandomAccessFile
from export.checkpoint.gguf_file import GgufFile
from export.checkpoint.gguf_tokenizer import read_tokenizer
from export.checkpoint.model import Checkpoint, Float32
from export.checkpoint.safetensors import row_range
from export.checkpoint.tensors import VerifiedTensors
from export.checkpoint.tokenizer import check_tokenizer
from export.graph.rope import inverse_frequencies
from export.messages import quoted
from export.spec import Llama3RopeScaling, ModelSpec
from guard.bundle.manifest import Source
from guard.errors import CheckpointError, UnsupportedError

_NAMES: Final[Mapping[str, str]] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FREQUENCIES: Final = "rope_freqs.weight"

#: The ``llama.*`` metadata that is understood; ``None``: read below, otherwise the only values that switch nothing on.
_KNOWN_KEYS: Final[Mapping[str, tuple[Any, ...] | None]] = {
    "context_length": None,
    "embedding_length": None,
    "block_count": None,
    "feed_forward_length": None,
    "attention.head_count": None,
    "attention.head_count_kv": None,
    "attention.key_length": None,
    "attention.value_length": None,
    "attention.layer_norm_rms_epsilon": None,
    "rope.dimension_count": None,
    "rope.freq_base": None,
    "rope.scaling.original_context_length": None,
    "vocab_size": None,
    "rope.scaling.type": ("none",),
    "rope.scaling.finetuned": (False, True),
    "expert_count": (0,),
    "expert_used_count": (0,),
}


def open_gguf(path: Path) -> Checkpoint:
    """Read and verify the GGUF file at ``path``; tensors are dequantized later, slice by slice.

    Raises CheckpointError naming the broken key or tensor, and UnsupportedError naming a feature.
    """
    handle = RandomAccessFile(path)
    file = GgufFile(handle)
    spec = read_spec(file)
    tokenizer_bytes, tokens = read_tokenizer(file)
    checked = check_tokenizer(tokenizer_bytes, spec.vocab_size, f"{file.name}: tokenizer")
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file.name}: tokenizer.chat_template: expected a text")
    return Checkpoint(
        spec=spec,
        tensors=VerifiedTensors(GgufTensors(file, spec), spec, file.name),
        tokenizer_json=checked.json,
        tokens=tokens,
        chat_template=template,
        generation=None,
        guard_format=None,
        source=Source(kind="gguf", name=file.name, revision=None, files={file.name: handle.sha256()}, adapter=None),
    )


class GgufTensors:
    """The tensors under Hugging Face names, the rows of Q and K in Hugging Face's order."""

    def __init__(self, file: GgufFile, spec: ModelSpec) -> None:
        self._file = file
        self._head_dim = spec.head_dim
        self._stored = {_huggingface_name(name): name for name in file.names() if name != _ROPE_FREQUENCIES}

    def names(self) -> frozenset[str]:
        """Every tensor name; one that has no Hugging Face name keeps its own."""
        return frozenset(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``; raises CheckpointError naming a missing tensor."""
        return self._file.shape(self._stored.get(name, name))

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """The tensor (or a contiguous slice of its first axis) as a fresh float32 array."""
        stored = self._stored.get(name, name)
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return self._file.read(stored, rows)
        start, stop = row_range(self.shape(name), rows, name)
        first, last = start // self._head_dim, -(-stop // self._head_dim)  # the heads that the rows belong to
        heads = self._file.read(stored, slice(first * self._head_dim, last * self._head_dim))
        plain = _half_rotation(heads, self._head_dim)
        return plain[start - first * self._head_dim : stop - first * self._head_dim]


def _half_rotation(rows: Float32, head_dim: int) -> Float32:
    """Undo llama.cpp's row order of Q and K, where the two of a rotated pair are neighbours (its converter's permute).

    Row ``2 i + half`` of a head there is row ``half * head_dim / 2 + i`` in Hugging Face's half-rotation layout.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _huggingface_name(name: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d{1,4})\.)?(\w+)\.weight", name)
    if match is None or match[2] not in _NAMES:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.weight"


def read_spec(file: GgufFile) -> ModelSpec:
    """The model's numbers from the metadata, through the same checks as a config.json."""
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedError(f"{file.name}: general.architecture {quoted(architecture)}: only 'llama' is supported")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(f"{file.name}: split.count: a model in several GGUF files is not supported")
    prefix = "llama."
    settings = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    for key, value in settings.items():
        allowed = _KNOWN_KEYS.get(key, ())
        if allowed is not None and (isinstance(value, np.ndarray) or value not in allowed):
            raise UnsupportedError(f"{file.name}: llama.{key[:80]} = {quoted(value)} is not supported")
    settings = {key: _plain(value) for key, value in settings.items()}
    head_dim = settings.get("attention.key_length", settings.get("rope.dimension_count"))
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(key, head_dim) != head_dim:
            raise UnsupportedError(f"{file.name}: llama.{key} differs from the key length {quoted(head_dim)}")
    spec = ModelSpec.from_config(
        {
            "model_type": "llama",
            "hidden_size": settings.get("embedding_length"),
            "intermediate_size": settings.get("feed_forward_length"),
            "num_hidden_layers": settings.get("block_count"),
            "num_attention_heads": settings.get("attention.head_count"),
            "num_key_value_heads": settings.get("attention.head_count_kv"),
            "head_dim": head_dim,
            "vocab_size": settings.get("vocab_size", _token_count(file)),
            "max_position_embeddings": settings.get("context_length"),
            "rms_norm_eps": settings.get("attention.layer_norm_rms_epsilon"),
            "rope_theta": settings.get("rope.freq_base"),
            "tie_word_embeddings": "output.weight" not in file.names(),
        },
        f"{file.name}: metadata",
    )
    original = settings.get("rope.scaling.original_context_length", 8192)
    return _with_rope_scaling(spec, file, original)


def _plain(value: Any) -> Any:
    """Numbers as they were before float32: 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(value))) if type(value) is float else value


def _token_count(file: GgufFile) -> int | None:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else None


def _with_rope_scaling(spec: ModelSpec, file: GgufFile, original_max_positions: Any) -> ModelSpec:
    """Llama 3's scaling, recovered from ``rope_freqs.weight``: by how much each frequency is divided.

    The file has only the outcome. It is taken as ``low_freq_factor`` 1 and ``high_freq_factor`` 4, the values of every
    published Llama 3; factors that these do not reproduce are refused.
    """
    if _ROPE_FREQUENCIES not in file.names():
        return spec
    factors = file.read(_ROPE_FREQUENCIES)
    where = f"{file.name}: tensor {_ROPE_FREQUENCIES}"
    if factors.shape != (spec.head_dim // 2,) or not np.isfinite(factors).all() or factors.min() < 1:
        raise CheckpointError(f"{where}: expected {spec.head_dim // 2} factors of at least 1")
    if type(original_max_positions) is not int or not 1 <= original_max_positions <= 1 << 24:
        raise CheckpointError(f"{file.name}: llama.rope.scaling.original_context_length: expected a token count")
    if factors.max() == 1:
        return spec
    scaled = replace(spec, rope_scaling=Llama3RopeScaling(float(factors.max()), 1.0, 4.0, original_max_positions))
    if not np.allclose(inverse_frequencies(spec) / inverse_frequencies(scaled), factors, rtol=1e-4, atol=0):
        raise UnsupportedError(f"{where}: these factors are not Llama 3's RoPE scaling")
    return scaled
