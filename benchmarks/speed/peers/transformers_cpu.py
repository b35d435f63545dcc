"""transformers on torch's CPU backend: bfloat16, its own KV cache, cut back to where prompts part."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill


def load(task: str, weights: str, threads: int) -> Engine:
    """The checkpoint itself, or with ``:float32`` behind its directory in that precision."""
    directory, _, dtype = weights.partition(":")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    return Transformers(AutoModelForCausalLM.from_pretrained(directory, dtype=kind).eval())


class Transformers:
    """One model; logits of the last position only."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._kept: tuple[int, ...] = ()

    def classify(self, work: Classify) -> float:
        prefix = tuple(work.prefix)
        if work.warm and self._kept == prefix:
            self._cache.crop(len(prefix))
        else:
            self._cache, self._kept = DynamicCache(), ()
            if work.warm:
                self._append(self._cache, [prefix])
                self._kept = prefix
        began = time.perf_counter()
        tokens = self._append(self._cache, [work.rest if work.warm else [*prefix, *work.rest]])
        for _ in range(work.answer - 1 if work.generated else 0):
            tokens = self._append(self._cache, tokens)
        return time.perf_counter() - began

    def prefill(self, work: Prefill) -> float:
        began = time.perf_counter()
        self._append(DynamicCache(), [work.token_ids])
        return time.perf_counter() - began

    def decode(self, work: Decode) -> float:
        cache = DynamicCache()
        tokens = self._append(cache, [work.prompt] * work.streams)
        began = time.perf_counter()
        for _ in range(work.steps):
            tokens = self._append(cache, tokens)
        return time.perf_counter() - began

    def _append(self, cache: DynamicCache, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Greedy next tokens, [streams][1]."""
        logits = self._model(torch.tensor(rows), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return [[int(row.argmax())] for row in logits[:, -1]]
