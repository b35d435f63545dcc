"""Random checkpoints in the exact form of real ones: for tests, benchmarks, and work on shapes whose weights are gated.

The weights are noise, so answers mean nothing; shapes, files, token ids and templates are those of the real models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from export.checkpoint.safetensors import INDEX_FILE, SINGLE_FILE
from export.checkpoint.tokenizer import check_tokenizer
from export.spec import Llama3RopeScaling, ModelSpec
from export.synthetic_tokenizer import LLAMA3_VOCAB_SIZE, llama3_tokenizer
from guard.errors import InvalidInputError, UnsupportedError

Dtype = Literal["BF16", "F16", "F32"]

#: Small enough for unit tests; every feature of the real shape is there (GQA, Llama 3 RoPE scaling, tied embeddings).
TINY: Final = ModelSpec(
    hidden_size=64,
    intermediate_size=128,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=512,
    max_positions=2048,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    rope_scaling=Llama3RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=256),
    tied_embeddings=True,
)

#: The shape of meta-llama/Llama-3.2-1B-Instruct and meta-llama/Llama-Guard-3-1B (their config.json).
LLAMA_3_2_1B: Final = ModelSpec(
    hidden_size=2048,
    intermediate_size=8192,
    layers=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    vocab_size=LLAMA3_VOCAB_SIZE,
    max_positions=131_072,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=Llama3RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192),
    tied_embeddings=True,
)

#: ``TINY`` with Llama 3's whole vocabulary, so that the token ids of ``guard.prompt.LLAMA_GUARD_3_1B`` hold.
TINY_LLAMA_3: Final = replace(TINY, vocab_size=LLAMA3_VOCAB_SIZE)

_ITEM_BYTES: Final[Mapping[Dtype, int]] = {"BF16": 2, "F16": 2, "F32": 4}
_CHUNK_ITEMS: Final = 4 << 20  # weights made and written at once: 16 MiB of float32
_STOP_TOKENS: Final = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def make_checkpoint(
    out: Path,
    spec: ModelSpec = TINY,
    *,
    seed: int = 0,
    tokenizer: Path | None = None,
    guard: bool = False,
    dtype: Dtype = "BF16",
    shards: int = 1,
) -> Path:
    """Write a complete random Hugging Face checkpoint of ``spec`` to the new directory ``out``; returns ``out``.

    The same arguments give the same bytes. ``tokenizer`` is a ``tokenizer.json`` with Llama 3's control tokens; by
    default one is generated. ``guard`` gives it Llama Guard's chat template instead of Llama 3.2 Instruct's. Weights
    are streamed: memory does not depend on the model's size. Raises InvalidInputError for an ``out`` that exists.
    """
    if out.exists():
        raise InvalidInputError("out", f"{out.name} exists already")
    tensors = list(spec.expected_tensors().items())
    if not 1 <= shards <= len(tensors):
        raise InvalidInputError("shards", f"must be between 1 and {len(tensors)}")
    template = chat_template(guard=guard)
    tokenizer_bytes = tokenizer.read_bytes() if tokenizer else llama3_tokenizer(spec.vocab_size, _words())
    control = check_tokenizer(tokenizer_bytes, spec.vocab_size, "tokenizer.json").control
    if not {"<|begin_of_text|>", "<|eot_id|>"} <= control.keys():
        raise UnsupportedError("tokenizer.json: has no <|begin_of_text|> or no <|eot_id|>, which templates need")
    ids = {
        "bos_token_id": control["<|begin_of_text|>"],
        "eos_token_id": [control[text] for text in _STOP_TOKENS if text in control],
    }
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    sampling = {} if guard else {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    out.mkdir(parents=True)
    write_json(out / "config.json", spec.to_config() | ids | {"torch_dtype": names[dtype]})
    write_json(out / "generation_config.json", ids | sampling)
    write_json(out / "tokenizer_config.json", _tokenizer_config(template, spec))
    (out / "tokenizer.json").write_bytes(tokenizer_bytes)
    _write_shards(out, tensors, seed, dtype, shards)
    return out


def chat_template(*, guard: bool) -> str:
    """The Jinja text of Llama Guard 3 1B's chat template, or of Llama 3.2 Instruct's."""
    name = "llama_guard_3_1b.jinja" if guard else "llama_3_2_instruct.jinja"
    return (resources.files("export") / "templates" / name).read_text(encoding="utf-8")


def _words() -> Iterator[str]:
    """Texts whose words the generated tokenizer should know: the prompts that synthetic models are asked with."""
    yield chat_template(guard=True)
    yield chat_template(guard=False)


def _tokenizer_config(template: str, spec: ModelSpec) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": spec.max_positions,
        "chat_template": template,
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as readable JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(out: Path, tensors: list[tuple[str, tuple[int, ...]]], seed: int, dtype: Dtype, shards: int) -> None:
    if shards == 1:
        write_random_safetensors(out / SINGLE_FILE, dict(tensors), seed, dtype)
        return
    weight_map: dict[str, str] = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = dict(tensors[index * len(tensors) // shards : (index + 1) * len(tensors) // shards])
        write_random_safetensors(out / name, part, seed, dtype)
        weight_map |= dict.fromkeys(part, name)
    total = sum(math.prod(shape) for _, shape in tensors) * _ITEM_BYTES[dtype]
    write_json(out / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_random_safetensors(path: Path, tensors: Mapping[str, tuple[int, ...]], seed: int, dtype: Dtype) -> None:
    """Write a safetensors file of random ``tensors`` (name to shape), streamed."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors.items():
            _write_weights(file, name, shape, seed, dtype)


def _write_weights(file: BinaryIO, name: str, shape: tuple[int, ...], seed: int, dtype: Dtype) -> None:
    """Norms near one; matrices N(0, 1 / columns), which keeps activations and logits near unit size (0.022 for 1B)."""
    random = np.random.default_rng([seed, *name.encode()])
    mean, deviation = (1.0, 0.1) if len(shape) == 1 else (0.0, 1 / math.sqrt(shape[-1]))
    left = math.prod(shape)
    while left:
        count = min(left, _CHUNK_ITEMS)
        values = random.standard_normal(count, np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        file.write(_encode(values, dtype).data)
        left -= count


def _encode(values: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[Any]:
    if dtype == "F32":
        return values.astype("<f4", copy=False)
    if dtype == "F16":
        return values.astype("<f2")
    bits = values.view(np.uint32)
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)  # round to nearest, ties to even
    return (bits >> 16).astype("<u2")
