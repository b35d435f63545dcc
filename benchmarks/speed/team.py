"""The engines of one run: each loaded in a child process of its own, all asked the same in turn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from benchmarks.speed.child import Child, EngineFailedError, Work
from benchmarks.speed.engine import Unsupported
from benchmarks.speed.environments import UnavailableError, python_for
from benchmarks.speed.interleave import LeaveError, Spread, alone, rounds, spread
from benchmarks.speed.memory import Memory, Watch
from benchmarks.speed.variants import Variant

_PEERS = "benchmarks.speed.peers"
_SPARE_MIB = 1500  # left to everybody else
_PAUSE_S = 0.3  # llama.cpp's and ONNX Runtime's own threads spin for a while when they have nothing to do


@dataclass(frozen=True)
class Plan:
    """How long to measure: rounds, seconds for each engine and workload, the most tokens of a text, how the names of
    workloads begin (all: empty); where things are kept.
    """

    cache: Path
    threads: int
    most_rounds: int = 7
    least_rounds: int = 2
    budget_s: float = 15.0
    longest: int = 1 << 20
    workloads: tuple[str, ...] = ()
    locks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Usage:
    """MiB of one engine: when loaded, after its last workload, and the most of its own pages and of all."""

    loaded: Memory
    steady: Memory
    most_anonymous: float
    most_resident: float


class Team:
    """Loads what can be loaded; ``skipped`` says by name why the others are not there."""

    def __init__(self, variants: Sequence[Variant], task: str, plan: Plan) -> None:
        self.skipped: dict[str, str] = {}
        self.load_s: dict[str, float] = {}
        self.children: dict[str, Child] = {}
        self._plan = plan
        self._loaded: dict[str, Memory] = {}
        self._watches: dict[str, Watch] = {}
        for variant in variants:
            try:
                self._load(variant, task)
            except (UnavailableError, EngineFailedError) as error:
                self.skipped[variant.name] = str(error)
                print(f"    without {variant.name}: {error}", file=sys.stderr, flush=True)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, child in self.children.items():
            self._watches[name].stop()
            child.close()

    def measure(self, works: Mapping[str, Work]) -> dict[str, dict[str, Spread]]:
        """Workload to engine to its milliseconds. An engine that fails at a workload has none there."""
        results: dict[str, dict[str, Spread]] = {}
        for name, work in works.items():
            print(f"    {name}", file=sys.stderr, flush=True)
            calls = {engine: partial(self._run, engine, name, child, work) for engine, child in self.children.items()}
            plan = self._plan
            taken = rounds(
                calls,
                most=plan.most_rounds,
                least=plan.least_rounds,
                budget_s=plan.budget_s,
                warm_up=not results,
                pause_s=_PAUSE_S,
                locks=plan.locks,
            )
            results[name] = {
                engine: spread([1000 * each for each in times]) for engine, times in taken.items() if times
            }
        return results

    def memory(self) -> dict[str, Usage]:
        """Of each engine, so far."""
        return {
            name: Usage(
                self._loaded[name],
                child.memory(),
                self._watches[name].most_anonymous,
                self._watches[name].most_resident,
            )
            for name, child in self.children.items()
        }

    def _run(self, engine: str, name: str, child: Child, work: Work) -> float:
        try:
            return child.run(work)
        except (Unsupported, EngineFailedError) as reason:
            self.skipped[f"{engine}: {name}"] = str(reason)
            raise LeaveError from reason

    def _load(self, variant: Variant, task: str) -> None:
        plan = self._plan
        python = python_for(variant.environment, plan.cache.parent / "peers")
        # What engines have mapped counts as available, but without it they would read their weights for every call.
        free = available_mib() - int(sum(child.memory().file_backed for child in self.children.values()))
        if free < variant.room_mib + _SPARE_MIB:
            raise UnavailableError(f"it may need {variant.room_mib} MiB, and {free} MiB are free")
        weights = variant.weights(plan.cache, task, python)
        child = Child(python, plan.cache / "engines.log")
        try:
            with alone(plan.locks):
                self.load_s[variant.name] = child.load(f"{_PEERS}.{variant.module}", task, weights, plan.threads)
        except EngineFailedError:
            child.close()
            raise
        self.children[variant.name] = child
        self._loaded[variant.name] = child.memory()
        self._watches[variant.name] = Watch(child.pid)


def available_mib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """What the machine could give without swapping."""
    text = meminfo.read_text(encoding="ascii")
    return int(text.partition("MemAvailable:")[2].split()[0]) >> 10
