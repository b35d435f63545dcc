"""Random weights in memory, as a TensorSource, and a plain ONNX Runtime session for the graphs built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from export.spec import ModelSpec
from export.synthetic import TINY

Float32 = npt.NDArray[np.float32]

#: Odd factors in hidden_size and intermediate_size, an untied head, three query heads to a KV head.
ODD = replace(
    TINY,
    hidden_size=96,
    intermediate_size=160,
    layers=3,
    heads=6,
    vocab_size=300,
    rope_scaling=None,
    tied_embeddings=False,
)


class RandomTensors:
    """Weights of ``spec`` whose activations and logits stay near unit size."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.values: dict[str, Float32] = {}
        for name, shape in spec.expected_tensors().items():
            noise = random.standard_normal(shape, np.float32)
            self.values[name] = noise / np.float32(shape[1] ** 0.5) if len(shape) == 2 else 1 + noise / np.float32(5)
        if spec.tied_embeddings:
            self.values["lm_head.weight"] = self.values["model.embed_tokens.weight"]

    def names(self) -> frozenset[str]:
        return frozenset(self.values)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def read(self, name: str, rows: slice | None = None) -> Float32:
        return self.values[name][slice(None) if rows is None else rows].copy()


def run_graph(
    directory: Path, spec: ModelSpec, rows: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
) -> Float32:
    """Logits [batch, length, rows] of rows of equal length, run in ``chunks`` of tokens (default: at once)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = ort.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    ids = np.array(rows, np.int64)
    shape = (len(ids), spec.kv_heads, ids.shape[1], spec.head_dim)
    past = {name: np.zeros(shape, np.float32) for name in names if name != "logits"}
    parts, done = [], 0
    for count in chunks or [ids.shape[1]]:
        piece = ids[:, done : done + count]
        done += count
        feeds = {
            "input_ids": piece,
            "seqlens_k": np.full(len(ids), done - 1, np.int32),
            "total_sequence_length": np.array(done, np.int32),
            "logit_positions": np.tile(np.arange(count), (len(ids), 1)),
        } | {name.replace("present", "past_key_values"): value for name, value in past.items()}
        results = dict(zip(names, session.run(None, feeds), strict=True))
        parts.append(results.pop("logits"))
        past = results
    return np.concatenate(parts, axis=1)
