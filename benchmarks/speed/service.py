"""The guard as a service: time to SERVING, memory, throughput by callers, overhead, cost by length."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import memory
from benchmarks.speed.interleave import Spread, alone, spread
from benchmarks.speed.workloads import text_of
from benchmarks.stream_cost import CountingRunner
from guard.bundle import open_bundle
from guard.classifier import Classifier, ClassifyTask
from guard.client import GuardClient
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.engine import Engine
from guard.engine.runner import load_runner
from guard.engine.settings import EngineSettings
from guard.tokenizer import Tokenizer
from tools.server_process import ServerProcess

CALLERS = (1, 2, 4, 8, 16)
LENGTHS = (10, 100, 400, 1000, 2000, 4000)
_STARTS = 3
_REQUESTS = 20
_CLOSED_LOOP_S = 12.0
#: A repeated text would be answered from the cache.
_NO_CACHE = {"GUARD_CACHE_ENTRIES": "0"}


@dataclass(frozen=True)
class Callers:
    """A closed loop: each caller asks again as soon as it has its answer."""

    callers: int
    per_s: float
    latency_ms: Spread


@dataclass(frozen=True)
class Length:
    """One judged text of so many tokens, with a warm prefix; ``passes`` over it, each a window."""

    tokens: int
    passes: int
    ms: Spread


@dataclass(frozen=True)
class Service:
    """Of one bundle. ``serving_s``: from the start of the process. Memory in MiB: before the first request, between
    requests after the last one, and at most.

    ``round_trip_ms`` of a text of 40 tokens over gRPC, of which ``outside_ms`` passed outside the model's turn
    (transport, decoding, tokenizing, policy) and ``between_ms`` between the graph's steps; ``overhead_ms`` is the sum.
    """

    bundle: str
    serving_s: Spread
    loaded: memory.Memory
    steady: memory.Memory
    most_anonymous: float
    most_resident: float
    round_trip_ms: Spread
    outside_ms: Spread
    between_ms: Spread
    overhead_ms: float
    callers: tuple[Callers, ...]
    lengths: tuple[Length, ...]


def measure(name: str, guard: Path, locks: Sequence[Path] = ()) -> Service:
    """About three minutes for a 1B guard."""
    bundle = open_bundle(guard)
    tokenizer = Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control)
    texts = {count: text_of(count, lambda piece: len(tokenizer.encode_text(piece))) for count in {40, *LENGTHS}}
    flags = ["--guard", str(guard)]
    starts = []
    for _ in range(_STARTS - 1):
        with alone(locks):
            starts.append(_start_seconds(flags))
    began = time.monotonic()
    with ServerProcess(flags, _NO_CACHE) as server, GuardClient(server.address) as client:
        starts.append(time.monotonic() - began)
        watch = memory.Watch(server.pid)
        loaded = memory.read(server.pid)
        with alone(locks):
            trips, outside = _round_trips(client, texts[40])
        callers = []
        for count in CALLERS:
            with alone(locks):
                callers.append(_closed_loop(server.address, count, texts[40]))
        lengths = []
        for count in LENGTHS:
            with alone(locks):
                lengths.append(_length(client, count, texts[count]))
        watch.stop()
        steady = memory.read(server.pid)
    with alone(locks):
        between = _between_steps(guard, texts[40])
    return Service(
        name,
        spread(starts),
        loaded,
        steady,
        watch.most_anonymous,
        watch.most_resident,
        trips,
        outside,
        between,
        outside.median + between.median,
        tuple(callers),
        tuple(lengths),
    )


def _start_seconds(flags: Sequence[str]) -> float:
    began = time.monotonic()
    with ServerProcess(flags):
        return time.monotonic() - began


def _round_trips(client: GuardClient, text: str) -> tuple[Spread, Spread]:
    """Milliseconds at the caller, and those that were neither the queue's nor the model's."""
    client.classify(text)
    trips, outside = [], []
    for _ in range(_REQUESTS):
        began = time.perf_counter()
        timings = client.classify(text).timings
        seconds = time.perf_counter() - began
        trips.append(seconds * 1000)
        outside.append((seconds - timings.queue_s - timings.model_s) * 1000)
    return spread(trips), spread(outside)


def _between_steps(guard: Path, text: str) -> Spread:
    """Milliseconds of the model's turn in which the graph did not run."""
    bundle = open_bundle(guard)
    runner = CountingRunner(load_runner(bundle, 0))
    classifier = Classifier(bundle, runner, Engine(runner, EngineSettings(), "benchmark"))
    task = ClassifyTask(Conversation((Message(Role.USER, text),)), Target.PROMPT)
    try:
        classifier.classify(task)
        found = []
        for _ in range(_REQUESTS):
            before = runner.seconds
            judgement = classifier.classify(task)
            found.append((judgement.queue_s + judgement.model_s - (runner.seconds - before)) * 1000)
    finally:
        classifier.close()
    return spread(found)


def _closed_loop(address: str, count: int, text: str) -> Callers:
    """For a fixed time; answers that arrive after it do not count."""
    latencies: list[float] = []
    until = time.monotonic() + _CLOSED_LOOP_S

    def call() -> None:
        with GuardClient(address) as client:
            while time.monotonic() < until:
                began = time.monotonic()
                client.classify(text)
                ended = time.monotonic()
                if ended <= until:
                    latencies.append((ended - began) * 1000)

    _together(call, count)
    if not latencies:
        return Callers(count, 0.0, Spread(0, 0.0, 0.0, 0.0))
    return Callers(count, len(latencies) / _CLOSED_LOOP_S, spread(latencies))


def _together(call: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _length(client: GuardClient, tokens: int, text: str) -> Length:
    times, passes = [], 0
    for _ in range(3):
        began = time.perf_counter()
        passes = client.classify(text).passes
        times.append((time.perf_counter() - began) * 1000)
    return Length(tokens, passes, spread(times))
