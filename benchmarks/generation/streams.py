"""Several streams at once: is each one's text what it is alone, and how much faster are they together?"""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.generation.prompts import STORIES, ask, sample
from benchmarks.generation.spread import Spread, spread
from guard.generation import GenerateTask, Generation
from guard.generator import Generator

COUNTS = (1, 2, 4, 8)
_TOKENS = 96
_ROUNDS = 5


@dataclass(frozen=True)
class Together:
    """``same`` of ``texts`` texts were what they were alone. ``speed``: all tokens a second, as a ratio to the same
    round's single stream; ``cpu_speed``: the same by seconds of CPU time, which is steady on a busy machine.
    ``tokens_per_s`` is the median itself.
    """

    streams: int
    texts: int
    same: int
    tokens_per_s: float
    speed: Spread
    cpu_speed: Spread


def measure(generator: Generator) -> tuple[Together, ...]:
    """One row for each of COUNTS, in rounds that have them all: what else the machine does then meets all of them.

    Half the tasks are greedy, half sampled with a seed. All but the ends of their prompts is cached, so that decoding
    is most of what is measured.
    """
    tasks = [
        ask(prompt, _TOKENS) if index % 2 == 0 else sample(prompt, _TOKENS, seed=index)
        for index, prompt in enumerate(STORIES)
    ]
    alone = {id(task): generator.generate(task).text for task in tasks}
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    cpu_rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    same = dict.fromkeys(COUNTS, 0)
    for turn in range(_ROUNDS):
        for count in COUNTS:
            chosen = [tasks[(turn + index) % len(tasks)] for index in range(count)]
            began, cpu_began = time.perf_counter(), time.process_time()
            done = _run(generator, chosen)
            tokens = sum(each.completion_tokens for each in done)
            rates[count].append(tokens / (time.perf_counter() - began))
            cpu_rates[count].append(tokens / (time.process_time() - cpu_began))
            same[count] += sum(each.text == alone[id(task)] for task, each in zip(chosen, done, strict=True))
    return tuple(
        Together(
            streams=count,
            texts=count * _ROUNDS,
            same=same[count],
            tokens_per_s=spread(rates[count]).median,
            speed=_to_one(rates, count),
            cpu_speed=_to_one(cpu_rates, count),
        )
        for count in COUNTS
    )


def _run(generator: Generator, tasks: list[GenerateTask]) -> list[Generation]:
    """All at once."""
    tickets = [generator.submit(task, lambda delta: None) for task in tasks]
    return [ticket.future.result() for ticket in tickets]


def _to_one(rates: dict[int, list[float]], count: int) -> Spread:
    """The rates of ``count`` streams as ratios to the single stream of their round."""
    return spread([rate / one for rate, one in zip(rates[count], rates[1], strict=True)])
