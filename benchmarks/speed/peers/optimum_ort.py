"""optimum's ORTModelForCausalLM: its graph computes logits at every position and copies the KV cache each step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill


def load(task: str, weights: str, threads: int) -> Engine:
    """A directory that optimum exported; the task makes no difference."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return Optimum(ORTModelForCausalLM.from_pretrained(weights, session_options=options, use_io_binding=False))


class Optimum:
    """One model. Its caches are tuples of tensors, so the prefix's is simply used again."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: tuple[tuple[int, ...], Any] = ((), None)

    def classify(self, work: Classify) -> float:
        prefix = tuple(work.prefix)
        if work.warm and self._kept[0] != prefix:
            self._kept = (prefix, self._append(None, 0, [prefix])[1])
        began = time.perf_counter()
        past, start = (self._kept[1], len(prefix)) if work.warm else (None, 0)
        tokens, past = self._append(past, start, [work.rest if work.warm else [*prefix, *work.rest]])
        position = len(prefix) + len(work.rest)
        for step in range(work.answer - 1 if work.generated else 0):
            tokens, past = self._append(past, position + step, tokens)
        return time.perf_counter() - began

    def prefill(self, work: Prefill) -> float:
        began = time.perf_counter()
        self._append(None, 0, [work.token_ids])
        return time.perf_counter() - began

    def decode(self, work: Decode) -> float:
        tokens, past = self._append(None, 0, [work.prompt] * work.streams)
        began = time.perf_counter()
        for step in range(work.steps):
            tokens, past = self._append(past, len(work.prompt) + step, tokens)
        return time.perf_counter() - began

    def _append(self, past: Any, start: int, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], Any]:
        """Greedy next tokens [streams][1], and the cache."""
        mask = torch.ones((len(rows), start + len(rows[0])), dtype=torch.int64)
        done = self._model(torch.tensor(rows), attention_mask=mask, past_key_values=past, use_cache=True)
        return [[int(row.argmax())] for row in done.logits[:, -1]], done.past_key_values
