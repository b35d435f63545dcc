"""OpenVINO GenAI's continuous batching, with its prefix cache: the way to serve with it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill

_CACHE_GB = 1


def load(task: str, weights: str, threads: int) -> Engine:
    """A directory that optimum-intel exported; the task makes no difference."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = _CACHE_GB, True
    scheduler.max_num_batched_tokens = 4096
    return OpenVino(genai.ContinuousBatchingPipeline(weights, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}))


class OpenVino:
    """One pipeline. It would know a prompt that it has seen, so that a token of each is changed."""

    def __init__(self, pipeline: genai.ContinuousBatchingPipeline) -> None:
        self._pipeline = pipeline
        self._fresh = itertools.count(1000)

    def classify(self, work: Classify) -> float:
        if work.warm:
            self._generate([*work.prefix, next(self._fresh)], 1)
            token_ids = [*work.prefix, next(self._fresh), *work.rest[1:]]
        else:
            token_ids = [next(self._fresh), *work.prefix[1:], *work.rest]
        return self._generate(token_ids, work.answer if work.generated else 1)

    def prefill(self, work: Prefill) -> float:
        return self._generate([next(self._fresh), *work.token_ids[1:]], 1)

    def decode(self, work: Decode) -> float:
        handles = []
        for stream in range(work.streams):
            prompt = [next(self._fresh), *work.prompt[1:]]
            handles.append(self._pipeline.add_request(stream, _tensor(prompt), _greedy(work.steps + 1)))
        waiting = set(range(work.streams))
        while waiting:  # until each has its first token
            self._pipeline.step()
            waiting = {stream for stream in waiting if not handles[stream].can_read()}
        began = time.perf_counter()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return time.perf_counter() - began

    def _generate(self, token_ids: Sequence[int], tokens: int) -> float:
        began = time.perf_counter()
        self._pipeline.generate([_tensor(token_ids)], [_greedy(tokens)])
        return time.perf_counter() - began


def _tensor(token_ids: Sequence[int]) -> openvino.Tensor:
    return openvino.Tensor(np.array([token_ids], np.int64))


def _greedy(tokens: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    return config
