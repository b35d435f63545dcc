"""Prompt lookup on and off in one run: same text, and how much faster?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.generation.prompts import LookupTask, ask, lookup_tasks
from benchmarks.generation.spread import Spread, spread
from guard.generation import Generation
from guard.generator import Generator

_TOKENS = 96


@dataclass(frozen=True)
class Pair:
    """One task, with lookup and without: tokens a second after the first one. ``margin``: how far the best token's
    logit was above the second best's where the texts part, without lookup; None when they are the same.
    """

    kind: str
    tokens: int
    drafted: int
    accepted: int
    speed: float
    margin: float | None


@dataclass(frozen=True)
class Lookup:
    """All tasks with one quantization. ``total_speed`` is the ratio of the summed decoding times."""

    quantization: str
    pairs: tuple[Pair, ...]
    same: int
    speed: Spread
    total_speed: float


def measure(generator: Generator) -> Lookup:
    """Each task twice; which way comes first alternates. The prompt is in the prefix cache both times."""
    pairs, with_s, without_s = [], 0.0, 0.0
    for index, task in enumerate(lookup_tasks()):
        generator.generate(ask(task.prompt, 1))
        first = index % 2 == 0
        runs = {
            lookup: generator.generate(ask(task.prompt, _TOKENS, prompt_lookup=lookup)) for lookup in (first, not first)
        }
        with_s += _decoding_s(runs[True])
        without_s += _decoding_s(runs[False])
        pairs.append(_pair(generator, task, runs[True], runs[False]))
    return Lookup(
        quantization=generator.bundle.manifest.quantization.name,
        pairs=tuple(pairs),
        same=sum(pair.margin is None for pair in pairs),
        speed=spread([pair.speed for pair in pairs]),
        total_speed=without_s / with_s,
    )


def _pair(generator: Generator, task: LookupTask, with_lookup: Generation, without: Generation) -> Pair:
    same = with_lookup.text == without.text
    return Pair(
        kind=task.kind,
        tokens=without.completion_tokens,
        drafted=with_lookup.drafted_tokens,
        accepted=with_lookup.accepted_tokens,
        speed=with_lookup.tokens_per_second / without.tokens_per_second,
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


def _decoding_s(generation: Generation) -> float:
    """Seconds from the first token to the last."""
    return generation.queue_s + generation.model_s - generation.first_token_s
