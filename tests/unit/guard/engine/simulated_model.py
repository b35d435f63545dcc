"""The clock and the model of a simulated day: see simulated.py."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from guard.engine.decode_batch import DecodeBatch
from guard.engine.kv_cache import KvCache
from guard.engine.sampler import Sampler, SamplingParams
from guard.engine.sequence import Float32
from guard.testing import TINY_SHAPE

SHAPE = replace(TINY_SHAPE, layers=2)
IM_END = 257  # of the tiny bundle
_ANSWERS = 64


class Clock:
    """Stands in for the module ``time`` where the engine reads it; seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class RunnerError(Exception):
    """What the model raises when it fails."""


class Model:
    """Logits that follow from every token before them and its place, so that one wrong token anywhere changes them."""

    def __init__(self, seed: int, letters: Sequence[int]) -> None:
        random = np.random.default_rng(seed)
        self._weights = random.integers(1, 1 << 62, SHAPE.max_positions)
        self._answers = np.full((_ANSWERS, SHAPE.vocab_size), -30.0, np.float32)
        self._answers[:, list(letters)] = random.normal(0.0, 2.0, (_ANSWERS, len(letters)))
        self._answers[:, IM_END] = np.where(random.random(_ANSWERS) < 0.03, 9.0, -9.0)

    def logits(self, tokens: npt.NDArray[np.integer[Any]], wanted: Sequence[int]) -> Float32:
        """float32 [len(wanted), vocabulary] after the ``wanted`` of ``tokens`` [n]."""
        digests = np.cumsum(tokens * self._weights[: len(tokens)])  # wraps around, which is as good
        answers: Float32 = self._answers[(digests[list(wanted)] >> 40) % _ANSWERS]
        return answers

    def write(self, prompt: Sequence[int], max_tokens: int, sampling: SamplingParams) -> list[int]:
        """The text that ``prompt`` alone gets, by the definition: one token after the other, no cache."""
        tokens, sampler = list(prompt), Sampler(sampling, prompt)
        while len(tokens) < len(prompt) + max_tokens:
            token = sampler.choose(self.logits(np.array(tokens), [len(tokens) - 1])[0])
            if token == IM_END:
                break
            tokens.append(token)
        return tokens[len(prompt) :]


@dataclass(frozen=True)
class Costs:
    """What a step costs in seconds, and how often one fails or gives NaN."""

    step_s: float
    token_s: float
    failures: float
    nans: float


class SimulatedRunner:
    """Keeps the token ids in all of the KV cache and reads them back, from the batch's arrays when it decodes."""

    def __init__(self, model: Model, costs: Costs, clock: Clock, chance: random.Random) -> None:
        self.shape = SHAPE
        self.rows = {token: token for token in range(SHAPE.vocab_size)}
        self.after_step: Callable[[], None] = lambda: None
        self.caches: weakref.WeakSet[KvCache] = weakref.WeakSet()
        self.broken_forwards = 0
        self.broken_rows: list[int] = []  # of each batch that failed
        self.nan_rows = 0
        self.steps = 0
        self._model, self._costs, self._clock, self._chance = model, costs, clock, chance

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        self.caches.add(cache)
        start, end = cache.length, cache.length + len(token_ids)
        cache.grow_to(end)
        broken = self._pass(len(token_ids))
        for array in cache.arrays:
            array[0, :, start:end] = np.array(token_ids, np.float32)[:, None]
        if broken:
            self.broken_forwards += 1
            raise RunnerError
        cache.length = end
        logits = self._read(cache.arrays, 0, end, [start + index for index in wanted])
        self.after_step()
        return logits

    def decode(self, batch: DecodeBatch, token_ids: Sequence[int]) -> Float32:
        self.caches.update(batch.caches)
        arrays = batch.arrays()
        broken = self._pass(len(batch.caches))
        for row, (cache, token) in enumerate(zip(batch.caches, token_ids, strict=True)):
            cache.grow_to(cache.length + 1)
            for array in arrays:
                array[row, :, cache.length] = token
        if broken:
            self.broken_rows.append(len(batch.caches))
            raise RunnerError
        logits = []
        for row, cache in enumerate(batch.caches):
            cache.length += 1
            logits.append(self._read(arrays, row, cache.length, [cache.length - 1])[0])
            if self._chance.random() < self._costs.nans:
                self.nan_rows += 1
                logits[-1] = np.full_like(logits[-1], np.nan)
        self.after_step()
        return np.stack(logits)

    def _pass(self, tokens: int) -> bool:
        """Let a step's time pass; returns whether it fails, which is after it wrote what it liked."""
        self.steps += 1
        self._clock.now += self._costs.step_s + tokens * self._costs.token_s
        broken = self._chance.random() < self._costs.failures
        if broken:
            self.after_step()
        return broken

    def _read(self, arrays: Sequence[Float32], row: int, length: int, wanted: Sequence[int]) -> Float32:
        array = arrays[self.steps % len(arrays)]  # each of them in its turn
        place = self.steps % SHAPE.head_dim
        return self._model.logits(array[row, 0, :length, place].astype(np.int64), wanted)
