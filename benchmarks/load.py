"""What a server does with more work than it can do: goodput, what is shed and how fast, health meanwhile, memory.

First a closed loop (so many callers, each with the next request as soon as it has its answer) measures the capacity;
then requests arrive by themselves, as a Poisson process, at multiples of it. Callers do not try again. Writes
``load.json``, ``.md`` and ``.svg``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import load_report
from benchmarks.latency import cpu_model, resident_mib
from benchmarks.load_report import Phase, Result, Scenario, quantiles
from guard.v1 import generation_pb2, generation_pb2_grpc, moderation_pb2, moderation_pb2_grpc
from tools.server_process import ServerProcess

_WORDS = "The council met again on Tuesday to talk about the bridge, the school roof and the price of water. "
_HEALTH_EVERY_S = 0.1
#: More than jobs that run at a time, so that the engine never waits for a caller.
_CALLERS = 16
#: Answers before anything is measured: caches are filled, and the server has learned what requests cost.
_WARM_UP = 16

#: Callers of an overloaded server wait so many times as long as those of the closed loop did.
_PATIENCE = 2.0
_CLOSED_LOOP_PATIENCE_S = 120.0

#: The number of a request and the seconds that its caller waits, to the answer.
Ask = Callable[[int, float], Awaitable[Any]]


@dataclass
class Seen:
    """What the callers of one phase saw."""

    answered_s: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    health_ms: list[float] = field(default_factory=list)
    unhealthy: int = 0
    rss_mib: int = 0
    lag_s: float = 0.0  # how late a request was sent, at most


class Load:
    """Requests of one kind, to one server. A caller waits ``deadline_s`` seconds for its answer."""

    def __init__(self, server: ServerProcess, ask: Ask) -> None:
        self.deadline_s = _CLOSED_LOOP_PATIENCE_S
        self._pid = server.pid
        self._ask = ask
        self._number = 0

    async def capacity(self, seconds: float) -> float:
        """Answers a second, in the closed loop. Sets how long later callers wait."""
        for _ in range(_WARM_UP):
            await self._ask(self._next(), self.deadline_s)
        seen, until = Seen(), time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < until:
                await self._call(seen)

        began = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        if seen.reasons:
            raise RuntimeError(f"the closed loop was refused: {dict(seen.reasons)}")
        lasted = time.monotonic() - began
        self.deadline_s = _PATIENCE * sum(seen.answered_s) / len(seen.answered_s)
        return len(seen.answered_s) / lasted

    async def phase(self, health: Any, per_second: float, multiple: float, seconds: float) -> Phase:
        """Requests at ``per_second`` for ``seconds``, and what became of them."""
        seen, chance = Seen(), random.Random(multiple)
        watching = asyncio.create_task(self._watch(seen, health))
        calls: list[asyncio.Task[None]] = []
        began = due = time.monotonic()
        while (due := due + chance.expovariate(per_second)) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            seen.lag_s = max(seen.lag_s, time.monotonic() - due)
            calls.append(asyncio.create_task(self._call(seen)))
        await asyncio.gather(*calls)
        lasted = time.monotonic() - began
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        return Phase(
            multiple=multiple,
            offered_per_s=len(calls) / seconds,
            goodput_per_s=len(seen.answered_s) / lasted,
            requests=len(calls),
            answered=len(seen.answered_s),
            shed=dict(sorted(seen.reasons.items())),
            latency_s=quantiles(seen.answered_s),
            refusal_ms=quantiles(seen.refused_ms),
            health_ms=quantiles(seen.health_ms),
            unhealthy=seen.unhealthy,
            rss_mib=seen.rss_mib,
            lag_ms=1000 * seen.lag_s,
        )

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _call(self, seen: Seen) -> None:
        began = time.monotonic()
        try:
            await self._ask(self._next(), self.deadline_s)
            seen.answered_s.append(time.monotonic() - began)
        except grpc.aio.AioRpcError as error:
            took, reason = time.monotonic() - began, reason_of(error)
            if reason in ("DEADLINE", "late") and took < 0.9 * self.deadline_s:
                reason = "DEADLINE, by estimate"
            seen.reasons[reason] += 1
            if reason in ("QUEUE_FULL", "DEADLINE, by estimate"):
                seen.refused_ms.append(1000 * took)

    async def _watch(self, seen: Seen, health: Any) -> None:
        """Ask for health as a prober does, and look at the memory."""
        while True:
            began = time.monotonic()
            answer = await health.Check(health_pb2.HealthCheckRequest(service=""), timeout=5)
            seen.health_ms.append(1000 * (time.monotonic() - began))
            seen.unhealthy += answer.status != health_pb2.HealthCheckResponse.SERVING
            seen.rss_mib = max(seen.rss_mib, resident_mib(self._pid))
            await asyncio.sleep(_HEALTH_EVERY_S)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason that the server gave; "late" when the caller's own clock was first, else the code."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return "late" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else str(error.code().name)


def classify(channel: Any) -> Ask:
    """Conversations of some sentences, all different."""
    stub: Any = moderation_pb2_grpc.ModerationServiceStub(channel)

    def ask(number: int, deadline_s: float) -> Awaitable[Any]:
        text = f"{number}. {_WORDS * (1 + number % 4)}"
        message = moderation_pb2.Message(role=moderation_pb2.ROLE_USER, content=text)
        request = moderation_pb2.ClassifyRequest(messages=[message])
        answer: Awaitable[Any] = stub.Classify(request, timeout=deadline_s)
        return answer

    return ask


def generate(channel: Any) -> Ask:
    """Texts of at most 32 tokens."""
    stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)

    def ask(number: int, deadline_s: float) -> Awaitable[Any]:
        prompt = f"Tell story number {number} about this: {_WORDS}"
        message = moderation_pb2.Message(role=moderation_pb2.ROLE_USER, content=prompt)
        request = generation_pb2.GenerateRequest(messages=[message], max_tokens=32, temperature=0.0)
        answer: Awaitable[Any] = stub.Generate(request, timeout=deadline_s)
        return answer

    return ask


async def measure(flags: Sequence[str], multiples: Sequence[float], seconds: float) -> tuple[Scenario, ...]:
    """A server of its own for each kind of request, so that their memory is told apart."""
    scenarios = []
    kinds: dict[str, Callable[[Any], Ask]] = {"Classify": classify, "Generate": generate}
    for name, kind in kinds.items():
        environment = {"GUARD_CACHE_ENTRIES": "0", "GUARD_ACCESS_LOG": "false"}
        with ServerProcess(flags, environment) as server:
            async with grpc.aio.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                load = Load(server, kind(channel))
                idle_mib = resident_mib(server.pid)
                capacity = await load.capacity(seconds)
                print(f"{name}: {capacity:.1f} a second, callers wait {load.deadline_s:.1f} s", flush=True)
                phases = []
                for multiple in multiples:
                    phases.append(await load.phase(health, multiple * capacity, multiple, seconds))
                    print(load_report.line(phases[-1]), flush=True)
                scenarios.append(Scenario(name, load.deadline_s, capacity, idle_mib, tuple(phases)))
    return tuple(scenarios)


def main() -> None:
    """Measures, writes the three files and prints a line for each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", required=True, metavar="DIR")
    parser.add_argument("--instruct", required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the files")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="of each phase (%(default)s)")
    parser.add_argument("--multiples", type=float, nargs="+", default=[1.0, 2.0, 10.0], metavar="N")
    args = parser.parse_args()
    flags = ["--guard", args.guard, "--instruct", args.instruct]
    scenarios = asyncio.run(measure(flags, args.multiples, args.seconds))
    names = tuple(Path(directory).name for directory in (args.guard, args.instruct))
    result = Result(f"{len(os.sched_getaffinity(0))} x {cpu_model()}", names, args.seconds, scenarios)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "load.json").write_text(json.dumps(load_report.as_json(result), indent=2) + "\n", encoding="utf-8")
    (args.out / "load.md").write_text(load_report.document(result), encoding="utf-8")
    (args.out / "load.svg").write_text(load_report.figure(result), encoding="utf-8")


if __name__ == "__main__":
    main()
