"""GGUF files of a Llama checkpoint for llama.cpp, written by the ``gguf`` package and quantized by llama.cpp itself.

    python -m benchmarks.speed.gguf_file SOURCE OUT Q8_0 Q4_0 Q4_K_M

SOURCE is a checkpoint's directory or a GGUF file. Runs in llama.cpp's environment. Files of checkpoints have no
vocabulary, since token ids are what is evaluated, and no scaled RoPE frequencies: they are good for speed alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}  # enum llama_ftype


def main() -> None:
    """Writes OUT-<type>.gguf for each type; a bfloat16 file beside them goes when they are done."""
    source, out, *types = sys.argv[1:]
    given = source.endswith(".gguf")
    whole = Path(source) if given else Path(f"{out}-bf16.gguf")
    if not given:
        write(Path(source), whole)
    for name in types:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = _TYPES[name], given
        target = Path(f"{out}-{name}.gguf")
        partial = target.with_suffix(".partial")
        if llama_cpp.llama_model_quantize(str(whole).encode(), str(partial).encode(), params):
            raise SystemExit(f"{name}: llama.cpp cannot quantize the file")
        partial.rename(target)
    if not given:
        whole.unlink()


def write(checkpoint: Path, out: Path) -> None:
    """One safetensors file of bfloat16 tensors as GGUF, norms in float32 as llama.cpp wants them."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, tensor in tensors(checkpoint / "model.safetensors"):
        if tensor.ndim == 1:
            values: npt.NDArray[Any] = (tensor.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(_renamed(name), values)
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleaved(tensor, heads if "q_proj" in name else kv_heads)
        raw = np.ascontiguousarray(tensor).view(np.uint8)
        writer.add_tensor(_renamed(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[np.uint16]]]:
    """Names and bfloat16 bit patterns, from the format's own header: its length, then JSON with offsets."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{name}: {entry['dtype']}, expected BF16")
        begin = 8 + length + entry["data_offsets"][0]
        yield name, np.memmap(path, np.uint16, "r", begin, tuple(entry["shape"]))


def interleaved(weight: npt.NDArray[np.uint16], heads: int) -> npt.NDArray[np.uint16]:
    """Rows of Q or K in the order that llama.cpp's RoPE of neighbouring pairs wants; transformers pairs halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _renamed(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, *middle, end = name.split(".")
    return f"blk.{layer}.{_NAMES['.'.join(middle)]}.{end}"


if __name__ == "__main__":
    main()
