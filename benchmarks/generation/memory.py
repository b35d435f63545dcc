"""Resident memory over many requests of every kind, and around one large request."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.generation.prompts import QUESTIONS, STORIES, ask, minutes, sample
from guard.engine.sequence import Ticket
from guard.engine.settings import EngineSettings
from guard.errors import CancelledError
from guard.generation import Delta, GenerateTask, Generation
from guard.generator import Generator
from guard.runtime import load_instruct

#: Just above the large request's KV cache, so that admission has to wait now and then.
_KV_BYTES = 384 << 20
_LARGE_SENTENCES = 312
_IN_FLIGHT = 12
_SAMPLE_S = 0.02
_STEADY = 0.2  # the first share of the requests fills the prefix cache
_MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Resident MiB of the whole process: ``samples`` are (requests done, MiB). ``growth_mib``: after the
    requests that fill the prefix cache, the median of the second half less that of the first. Samples differ by the
    requests that are active, so that a few of them say little.
    """

    requests: int
    cancelled: int
    loaded_mib: float
    samples: tuple[tuple[int, float], ...]
    growth_mib: float
    large_prompt_tokens: int
    large_kv_mib: float
    before_large_mib: float
    during_large_mib: float
    after_large_mib: float
    kv_peak_mib: float
    kv_budget_mib: float
    kv_left_mib: float


def measure(directory: str, threads: int, requests: int) -> Memory:
    """Run ``requests`` mixed requests, _IN_FLIGHT at once, then a large one. Wants a process that did nothing yet."""
    settings = EngineSettings(threads=threads, kv_bytes=_KV_BYTES)
    generator = load_instruct(directory, settings)
    try:
        loaded = resident_mib()
        samples, cancelled = _mixed(generator, requests)
        before = resident_mib()
        with _peak() as seen:
            large = generator.generate(ask(f"Summarize.\n\n{minutes(_LARGE_SENTENCES)}", 8))
        after = resident_mib()
        shape = generator.bundle.manifest.shape
        return Memory(
            requests=requests,
            cancelled=cancelled,
            loaded_mib=loaded,
            samples=tuple(samples),
            growth_mib=_growth(samples),
            large_prompt_tokens=large.prompt_tokens,
            large_kv_mib=(large.prompt_tokens + 8) * shape.kv_bytes_per_token / _MIB,
            before_large_mib=before,
            during_large_mib=max(seen),
            after_large_mib=after,
            kv_peak_mib=generator.engine.kv_bytes_peak / _MIB,
            kv_budget_mib=settings.kv_bytes / _MIB,
            kv_left_mib=generator.engine.kv_bytes_in_use / _MIB,
        )
    finally:
        generator.close()


def _mixed(generator: Generator, requests: int) -> tuple[list[tuple[int, float]], int]:
    """Samples after every hundredth part of the requests, and how many requests were cancelled."""
    chance = random.Random(4)
    waiting: deque[Ticket[Generation]] = deque()
    samples, cancelled = [], 0
    for number in range(1, requests + _IN_FLIGHT + 1):
        if len(waiting) == _IN_FLIGHT or number > requests:
            try:
                waiting.popleft().future.result()
            except (CancelledError, FutureCancelledError):
                cancelled += 1
            done = min(number, requests + _IN_FLIGHT) - _IN_FLIGHT
            if done % max(1, requests // 100) == 0:
                samples.append((done, resident_mib()))
        if number <= requests:
            waiting.append(_submit(generator, number, chance))
    return samples, cancelled


def _submit(generator: Generator, number: int, chance: random.Random) -> Ticket[Generation]:
    """A request of a random kind: short or long, greedy or sampled, one choice or several, cancelled or not."""
    task = _task(number, chance)
    if chance.random() >= 0.1:
        return generator.submit(task, lambda delta: None)
    started = threading.Event()

    def note(delta: Delta) -> None:
        started.set()

    ticket = generator.submit(replace(task, max_tokens=512), note)
    if chance.random() < 0.5:
        started.wait(30)
    ticket.cancel()
    return ticket


def _task(number: int, chance: random.Random) -> GenerateTask:
    tokens = chance.randint(1, 12)
    kind = chance.random()
    if kind < 0.5:
        return ask(chance.choice(QUESTIONS), tokens)
    if kind < 0.75:
        return sample(f"{number}. {chance.choice(STORIES)}", tokens, seed=number)
    if kind < 0.9:
        return sample(chance.choice(STORIES), tokens, seed=number, choices=chance.randint(2, 3))
    sentences = chance.choice((5, 10, 40))
    return ask(f"{minutes(sentences, first_day=number)}\nSummarize.", tokens, prompt_lookup=True)


def _growth(samples: list[tuple[int, float]]) -> float:
    """MiB from the first half of the steady samples to the second, by medians."""
    steady = [mib for _, mib in samples[int(_STEADY * len(samples)) :]]
    return _median(steady[len(steady) // 2 :]) - _median(steady[: len(steady) // 2])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def resident_mib() -> float:
    """Of this process, now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def _peak() -> Iterator[list[float]]:
    """A list that grows with samples of the resident MiB while the block runs."""
    seen = [resident_mib()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_S):
            seen.append(resident_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
