"""Writes an adapter directory: what ``guard export --adapter`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from guard.bundle.guard_format import GuardFormat

Half = npt.NDArray[np.float16]


def write_guard(directory: Path, guard_format: GuardFormat, token_ids: Sequence[int], rows: npt.ArrayLike) -> None:
    """``guard.json`` and ``guard_head.safetensors``: ``rows`` [len(token_ids), hidden] replace the LM head's rows.

    Stored as float32: 16 rows are small, and a rounded head would shift every score.
    """
    value = {"format": asdict(guard_format), "head_token_ids": list(token_ids)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "guard.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_safetensors(directory / "guard_head.safetensors", {"weight": np.asarray(rows, np.float32)})


def write_lora(directory: Path, pairs: Mapping[str, tuple[Any, Any]], rank: int, alpha: int, base: str) -> None:
    """``adapter_config.json`` and ``adapter_model.safetensors`` (float16) as PEFT saves and loads them.

    ``pairs``: module name to A [rank, in] and B [out, rank].
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "r": rank,
        "target_modules": sorted({name.rsplit(".", 1)[1] for name in pairs}),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = _half(a, name)
        tensors[f"base_model.model.{name}.lora_B.weight"] = _half(b, name)
    write_safetensors(directory / "adapter_model.safetensors", tensors)


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Tensors of float16 or float32 in the safetensors format (github.com/huggingface/safetensors, README "Format"),
    sorted by name, so that equal tensors give equal bytes.
    """
    header: dict[str, Any] = {}
    offset = 0
    ordered = sorted(tensors.items())
    for name, tensor in ordered:
        dtype = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(np.ascontiguousarray(tensor).tobytes())


def _half(tensor: Any, name: str) -> Half:
    values = np.asarray(tensor, np.float32)
    if not (np.abs(values) <= np.finfo(np.float16).max).all():  # also false for NaN
        raise ValueError(f"{name}: a LoRA weight does not fit into float16")
    return values.astype(np.float16)
