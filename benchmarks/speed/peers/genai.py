"""onnxruntime-genai: one generator that keeps its KV cache and is rewound to where prompts part."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import onnxruntime_genai as genai

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill

_CONTEXT = 2560


def load(task: str, weights: str, threads: int) -> Engine:
    """A directory that its model builder wrote; the task makes no difference."""
    config = genai.Config(weights)
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
    return GenAI(genai.Model(config))


class GenAI:
    """One model; a generator for prompts, others for decoding."""

    def __init__(self, model: genai.Model) -> None:
        self._model = model
        self._generator = self._new(1, _CONTEXT)
        self._kept: tuple[int, ...] = ()

    def classify(self, work: Classify) -> float:
        prefix = tuple(work.prefix)
        if work.warm and self._kept == prefix:
            self._generator.rewind_to(len(prefix))
        else:
            self._generator.rewind_to(0)
            self._kept = ()
            if work.warm:
                self._append(prefix)
                self._kept = prefix
        began = time.perf_counter()
        self._append(work.rest if work.warm else [*prefix, *work.rest])
        for _ in range(work.answer if work.generated else 0):
            self._generator.generate_next_token()
        self._generator.get_logits().argmax()
        return time.perf_counter() - began

    def prefill(self, work: Prefill) -> float:
        self._generator.rewind_to(0)
        self._kept = ()
        began = time.perf_counter()
        self._append(work.token_ids)
        self._generator.get_logits().argmax()
        return time.perf_counter() - began

    def decode(self, work: Decode) -> float:
        generator = self._new(work.streams, len(work.prompt) + work.steps + 2)
        generator.append_tokens(np.tile(np.array(work.prompt, np.int32), (work.streams, 1)))
        generator.generate_next_token()
        began = time.perf_counter()
        for _ in range(work.steps):
            generator.generate_next_token()
        return time.perf_counter() - began

    def _new(self, streams: int, length: int) -> genai.Generator:
        params = genai.GeneratorParams(self._model)
        params.set_search_options(max_length=length, min_length=length, batch_size=streams, do_sample=False)
        return genai.Generator(self._model, params)

    def _append(self, token_ids: Sequence[int]) -> None:
        self._generator.append_tokens(np.array([token_ids], np.int32))
