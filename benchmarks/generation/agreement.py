"""How often does a quantized bundle write what the float32 one writes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.generation.lookup import common_prefix
from benchmarks.generation.prompts import QUESTIONS, STORIES, ask, lookup_tasks
from guard.generator import Generator

_TOKENS = 48


@dataclass(frozen=True)
class Agreement:
    """Greedy texts of ``prompts`` prompts: ``same`` are float32's; of the ``tokens`` of float32's texts, the first
    ``common_tokens`` of each text, summed, are the same.
    """

    quantization: str
    prompts: int
    same: int
    tokens: int
    common_tokens: int


def write(generator: Generator) -> list[tuple[int, ...]]:
    """The token ids of each prompt's greedy text, all written together."""
    prompts = [*(task.prompt for task in lookup_tasks()), *STORIES, *QUESTIONS]
    tickets = [generator.submit(ask(prompt, _TOKENS, logprobs=0), lambda delta: None) for prompt in prompts]
    return [tuple(token.token_id for token in ticket.future.result().choices[0].logprobs) for ticket in tickets]


def compare(generator: Generator, exact: Sequence[tuple[int, ...]]) -> Agreement:
    """A quantized bundle's texts with ``exact``, float32's token ids."""
    own = write(generator)
    return Agreement(
        quantization=generator.bundle.manifest.quantization.name,
        prompts=len(exact),
        same=sum(one == two for one, two in zip(exact, own, strict=True)),
        tokens=sum(map(len, exact)),
        common_tokens=sum(common_prefix(one, two) for one, two in zip(exact, own, strict=True)),
    )
