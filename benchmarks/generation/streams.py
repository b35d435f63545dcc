"""Several streams at once: is each one's text what it is alone, and how much faster are they together?"""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.generation.prompts import STORIES, ask, sample
from benchmarks.generation.spread import Spread, spread
from guard.generation import GenerateTask
from guard.generator import Generator

COUNTS = (1, 2, 4, 8)
_TOKENS = 64
_ROUNDS = 6


@dataclass(frozen=True)
class Together:
    """``same`` of ``texts`` texts were what they were alone. ``speed``: all tokens a second, as a ratio to the same
    round's single stream; ``tokens_per_s`` is the median itself.
    """

    streams: int
    texts: int
    same: int
    tokens_per_s: float
    speed: Spread


def measure(generator: Generator) -> tuple[Together, ...]:
    """One row for each of COUNTS, in rounds that have them all: what else the machine does then meets all of them.

    Half the tasks are greedy, half sampled with a seed. Their prompts are cached, so that decoding is what is measured.
    """
    tasks = [
        ask(prompt, _TOKENS) if index % 2 == 0 else sample(prompt, _TOKENS, seed=index)
        for index, prompt in enumerate(STORIES)
    ]
    alone = {id(task): generator.generate(task).text for task in tasks}
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    same = dict.fromkeys(COUNTS, 0)
    for turn in range(_ROUNDS):
        for count in COUNTS:
            chosen = [tasks[(turn + index) % len(tasks)] for index in range(count)]
            rate, texts = _run(generator, chosen)
            rates[count].append(rate)
            same[count] += sum(text == alone[id(task)] for task, text in zip(chosen, texts, strict=True))
    return tuple(
        Together(
            streams=count,
            texts=count * _ROUNDS,
            same=same[count],
            tokens_per_s=spread(rates[count]).median,
            speed=spread([rate / one for rate, one in zip(rates[count], rates[1], strict=True)]),
        )
        for count in COUNTS
    )


def _run(generator: Generator, tasks: list[GenerateTask]) -> tuple[float, list[str]]:
    """Tokens a second of all tasks together, from submission to the end of the last, and their texts."""
    began = time.perf_counter()
    tickets = [generator.submit(task, lambda delta: None) for task in tasks]
    done = [ticket.future.result() for ticket in tickets]
    return sum(each.completion_tokens for each in done) / (time.perf_counter() - began), [each.text for each in done]
