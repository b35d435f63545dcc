"""Writing GGUF files for tests with the ``gguf`` package, in the way llama.cpp's converter lays a Llama model out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from export.checkpoint.model import Checkpoint

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


@dataclass
class GgufContent:
    """Metadata and tensors (name to values and type) of a GGUF file to be written."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in self.metadata.items():
            _setter(writer, value)(key, value)
        for name, (values, kind) in self.tensors.items():
            data = values if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(values, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _setter(writer: Any, value: Any) -> Callable[[str, Any], None]:
    kinds: Mapping[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    return kinds[type(value)]


def llama_content(
    checkpoint: Checkpoint, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
) -> GgufContent:
    """What llama.cpp's converter makes of ``checkpoint``: matrices in ``kind``, norms in F32, Q and K rows permuted."""
    spec = checkpoint.spec
    content = GgufContent(
        {
            "llama.context_length": spec.max_positions,
            "llama.embedding_length": spec.hidden_size,
            "llama.block_count": spec.layers,
            "llama.feed_forward_length": spec.intermediate_size,
            "llama.attention.head_count": spec.heads,
            "llama.attention.head_count_kv": spec.kv_heads,
            "llama.attention.layer_norm_rms_epsilon": spec.rms_norm_eps,
            "llama.rope.dimension_count": spec.head_dim,
            "llama.rope.freq_base": spec.rope_theta,
            "llama.vocab_size": spec.vocab_size,
            **_tokenizer_metadata(checkpoint),
        }
    )
    for name in sorted(spec.expected_tensors()):
        values = checkpoint.tensors.read(name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = len(values) // spec.head_dim
            values = values.reshape(heads, 2, spec.head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
        stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        content.tensors[_gguf_name(name)] = (np.ascontiguousarray(values), stored)
    return content


def _gguf_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _tokenizer_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer = json.loads(checkpoint.tokenizer_json)
    texts = {token_id: text for text, token_id in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    texts |= {token_id: token["content"] for token_id, token in added.items()}
    kinds = [gguf.TokenType.CONTROL if token_id in added else gguf.TokenType.NORMAL for token_id in sorted(texts)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [texts[token_id] for token_id in sorted(texts)],
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": [
            pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": checkpoint.tokens.bos,
        "tokenizer.ggml.eos_token_id": checkpoint.tokens.control["<|eot_id|>"],
        "tokenizer.chat_template": checkpoint.chat_template,
    }
