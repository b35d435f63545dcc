"""Prompt lookup on and off in one run: same text, and how much faster?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.generation.prompts import LookupTask, ask, lookup_tasks
from benchmarks.generation.spread import Spread, spread
from guard.generation import Generation
from guard.generator import Generator

_TOKENS = 96


@dataclass(frozen=True)
class Pair:
    """One task, with lookup and without. ``speed`` is the ratio of tokens a second after the first one; ``cpu_speed``
    that of tokens a second of CPU time, which is steady on a busy machine. ``margin``: how far the best token's logit
    was above the second best's where the texts part, without lookup; None when they are the same.
    """

    kind: str
    tokens: int
    drafted: int
    accepted: int
    speed: float
    cpu_speed: float
    margin: float | None


@dataclass(frozen=True)
class Lookup:
    """All tasks with one quantization. ``total_speed`` and ``total_cpu_speed`` are ratios of summed times."""

    quantization: str
    pairs: tuple[Pair, ...]
    same: int
    speed: Spread
    cpu_speed: Spread
    total_speed: float
    total_cpu_speed: float


@dataclass(frozen=True)
class _Run:
    generation: Generation
    cpu_s: float

    @property
    def decoding_s(self) -> float:
        """From the first token to the last."""
        done = self.generation
        return done.queue_s + done.model_s - done.first_token_s

    @property
    def cpu_rate(self) -> float:
        """Tokens a second of CPU time."""
        return self.generation.completion_tokens / self.cpu_s


def measure(generator: Generator) -> Lookup:
    """Each task twice; which way comes first alternates. The prompt is in the prefix cache both times."""
    pairs, with_lookup, without = [], [], []
    for index, task in enumerate(lookup_tasks()):
        generator.generate(ask(task.prompt, 1))
        first = index % 2 == 0
        runs = {lookup: _run(generator, task, lookup) for lookup in (first, not first)}
        with_lookup.append(runs[True])
        without.append(runs[False])
        pairs.append(_pair(generator, task, runs[True], runs[False]))
    return Lookup(
        quantization=generator.bundle.manifest.quantization.name,
        pairs=tuple(pairs),
        same=sum(pair.margin is None for pair in pairs),
        speed=spread([pair.speed for pair in pairs]),
        cpu_speed=spread([pair.cpu_speed for pair in pairs]),
        total_speed=sum(run.decoding_s for run in without) / sum(run.decoding_s for run in with_lookup),
        total_cpu_speed=sum(run.cpu_s for run in without) / sum(run.cpu_s for run in with_lookup),
    )


def _run(generator: Generator, task: LookupTask, prompt_lookup: bool) -> _Run:
    began = time.process_time()
    generation = generator.generate(ask(task.prompt, _TOKENS, prompt_lookup=prompt_lookup))
    return _Run(generation, time.process_time() - began)


def _pair(generator: Generator, task: LookupTask, with_lookup: _Run, without: _Run) -> Pair:
    same = with_lookup.generation.text == without.generation.text
    return Pair(
        kind=task.kind,
        tokens=without.generation.completion_tokens,
        drafted=with_lookup.generation.drafted_tokens,
        accepted=with_lookup.generation.accepted_tokens,
        speed=with_lookup.generation.tokens_per_second / without.generation.tokens_per_second,
        cpu_speed=with_lookup.cpu_rate / without.cpu_rate,
        margin=None if same else _margin(generator, task),
    )


def _margin(generator: Generator, task: LookupTask) -> float | None:
    """Between the best and the second-best logit where the two texts part; runs them again to see."""
    plain, drafted = (
        generator.generate(ask(task.prompt, _TOKENS, prompt_lookup=lookup, logprobs=2)).choices[0].logprobs
        for lookup in (False, True)
    )
    parted = common_prefix([token.token_id for token in plain], [token.token_id for token in drafted])
    if parted == len(plain):
        return 0.0
    best, second = plain[parted].top
    return best.logprob - second.logprob


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first elements are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
