"""One soak: traffic, faults and reloads side by side for some time, and what came of it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from benchmarks.soak.faults import ALLOWED, FAULTS, OWN_FAILURE, open_files, resident_bytes
from benchmarks.soak.traffic import JUDGING, MIX, TIMEOUT_S, Item, Known, Stubs, classify, learn, prompt
from guard.v1 import model_pb2
from tools.server_process import ServerProcess

MIB = 1 << 20
CLIENTS = 4
_SAMPLE_S = 0.5
_SETTLE_S = 30.0
#: A prompt of about so many tokens: the largest single request of the soak.
_LARGE_TOKENS = 4000


@dataclass
class Result:
    """Counts of a soak. ``wrong``: answers that differ from those of the same request alone, or unsafe texts that were
    not blocked. ``refused``: right requests that there was no room for; ``lost``: those without an answer. Memory in
    MiB resident, of one sample each half second.
    """

    seconds: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    unsafe_asked: int = 0
    unsafe_blocked: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    reloads: int = 0
    rss: list[float] = field(default_factory=list)
    rss_learnt: float = 0.0
    rss_end: float = 0.0
    rss_before_large: float = 0.0
    rss_during_large: float = 0.0
    rss_after_large: float = 0.0
    rss_highest: float = 0.0
    files_before: int = 0
    files_after: int = 0
    idle_requests: int = -1
    idle_kv_bytes: int = -1
    errors_logged: Counter[str] = field(default_factory=Counter)


class Soak:
    """Against one server. ``reloads``: bundles of its model directory, by the names of the models that they replace."""

    def __init__(self, server: ServerProcess, known: Known, reloads: dict[str, str], seed: int) -> None:
        self.result = Result()
        self._server, self._known, self._reloads = server, known, reloads
        self._chance = Random(seed)
        self._until = 0.0

    async def run(self, seconds: float, reload_every_s: float) -> Result:
        """The whole of it; ``seconds`` of traffic."""
        stubs, result = Stubs(self._server.address), self.result
        result.rss_learnt = self._rss()
        result.files_before = open_files(self._server.pid)
        began = time.monotonic()
        self._until = began + seconds
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(self._sample())
            work = [group.create_task(self._ask()) for _ in range(CLIENTS)]
            work += [group.create_task(self._disturb(stubs)) for _ in range(2)]
            work.append(group.create_task(self._reload(stubs, reload_every_s)))
            await asyncio.wait(work)
            sampling.cancel()
        result.seconds = time.monotonic() - began
        await self._settle(stubs)
        result.rss_end = self._rss()
        await self._large(stubs)
        await self._settle(stubs)
        await stubs.channel.close()
        await asyncio.sleep(1.0)
        result.files_after = open_files(self._server.pid)
        result.rss_highest = resident_bytes(self._server.pid, "VmHWM") / MIB
        levels = [event for event in self._server.events() if event["level"] == "error"]
        result.errors_logged = Counter(str(event["event"]) for event in levels)
        return result

    def _rss(self) -> float:
        return resident_bytes(self._server.pid) / MIB

    async def _sample(self) -> None:
        while True:
            self.result.rss.append(self._rss())
            await asyncio.sleep(_SAMPLE_S)

    async def _ask(self) -> None:
        stubs, kinds, weights = Stubs(self._server.address), list(MIX), list(MIX.values())
        while time.monotonic() < self._until:
            ask, item = self._chance.choices(kinds, weights)[0], self._chance.choice(self._known.items)
            self.result.requests[ask.__name__] += 1
            try:
                answer = await ask(stubs, item)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.result.refused += 1
                    await asyncio.sleep(1.0)
                    continue
                self.result.lost.append(f"{ask.__name__}: {error.code().name}: {error.details()}")
                continue
            right = self._known.right(ask, item, answer)
            if not right:
                self.result.wrong.append(f"{ask.__name__} of item {self._known.items.index(item)}")
            if item.unsafe and ask in JUDGING:
                self.result.unsafe_asked += 1
                self.result.unsafe_blocked += answer[0].startswith("unsafe")
        await stubs.channel.close()

    async def _disturb(self, stubs: Stubs) -> None:
        while time.monotonic() < self._until:
            fault, item = self._chance.choice(FAULTS), self._chance.choice(self._known.items)
            self.result.faults[fault.__name__] += 1
            try:
                await fault(self._server.address, stubs, item, self._chance)
            except grpc.aio.AioRpcError as error:
                if error.code() not in ALLOWED and error.details() != OWN_FAILURE:
                    self.result.wrong.append(f"{fault.__name__}: {error.code().name}")
            await asyncio.sleep(self._chance.random() * 0.5)

    async def _reload(self, stubs: Stubs, every_s: float) -> None:
        turn = 0
        while time.monotonic() + every_s < self._until:
            await asyncio.sleep(every_s)
            name = sorted(self._reloads)[turn % len(self._reloads)]
            request = model_pb2.LoadModelRequest(bundle=self._reloads[name], replace=name)
            await stubs.models.LoadModel(request, timeout=TIMEOUT_S)
            self.result.reloads, turn = self.result.reloads + 1, turn + 1

    async def _settle(self, stubs: Stubs) -> None:
        """Wait until the server has nothing to do, and note whether it holds anything still."""
        until = time.monotonic() + _SETTLE_S
        while time.monotonic() < until:
            models = (await stubs.models.ListModels(model_pb2.ListModelsRequest(), timeout=TIMEOUT_S)).models
            self.result.idle_requests = sum(model.requests for model in models)
            self.result.idle_kv_bytes = sum(model.kv_bytes_in_use for model in models)
            if not self.result.idle_requests and not self.result.idle_kv_bytes:
                break
            await asyncio.sleep(_SAMPLE_S)
        await asyncio.sleep(2.0)

    async def _large(self, stubs: Stubs) -> None:
        """A long prompt alone: its memory goes back."""
        self.result.rss_before_large = self._rss()
        asking = asyncio.ensure_future(
            stubs.generation.Generate(prompt(Item("word " * _LARGE_TOKENS, False)), timeout=TIMEOUT_S * 5)
        )
        while not asking.done():
            self.result.rss_during_large = max(self.result.rss_during_large, self._rss())
            await asyncio.sleep(0.05)
        if (error := asking.exception()) is not None:
            why = (
                f"{error.code().name} {error.details()}"
                if isinstance(error, grpc.aio.AioRpcError)
                else type(error).__name__
            )
            self.result.lost.append(f"the large prompt: {why}")
        await asyncio.sleep(2.0)
        self.result.rss_after_large = self._rss()


async def soak(
    server: ServerProcess,
    items: list[Item],
    reloads: dict[str, str],
    seconds: float,
    reload_every_s: float,
    seed: int = 1,
    at_most: int = 8,
) -> Result:
    """Learn the answers to ``at_most`` items of each kind, then soak. Raises RuntimeError when the model is sure of
    fewer than three.
    """
    stubs = Stubs(server.address)
    known = await learn(stubs, items, at_most)
    for item in known.items:  # the cache answers what was asked before; the model has to, too
        await classify(stubs, item)
    await stubs.channel.close()
    if min(sum(item.unsafe for item in known.items), sum(not item.unsafe for item in known.items)) < 3:
        raise RuntimeError("the guard is sure of too few texts")
    return await Soak(server, known, reloads, seed).run(seconds, reload_every_s)


def described(result: Result, plan_mib: float, more_mib: float) -> list[str]:
    """The result in lines. ``more_mib``: what may be dropped, and a second version while it is loaded."""
    rss = result.rss
    return [
        f"{result.seconds:.0f} s, {CLIENTS} clients: {sum(result.requests.values())} requests"
        f" ({', '.join(f'{name} {count}' for name, count in result.requests.most_common())})",
        f"faults injected: {sum(result.faults.values())}"
        f" ({', '.join(f'{name} {count}' for name, count in result.faults.most_common())}), reloads {result.reloads}",
        f"wrong answers: {len(result.wrong)}; lost: {len(result.lost)}; refused for want of room: {result.refused}",
        f"unsafe texts: {result.unsafe_asked} asked, {result.unsafe_blocked} blocked",
        f"RSS in MiB: {rss[0]:.0f} at the start, {statistics.median(rss):.0f} median, {max(rss):.0f} highest,"
        f" {result.rss_end:.0f} at the end; the plan's total is {plan_mib:.0f},"
        f" and {more_mib:.0f} more are tables that may be dropped and a second version during a reload;"
        f" medians of each fifth of the time: {', '.join(f'{level:.0f}' for level in _medians(rss, 5))}",
        f"a prompt of {_LARGE_TOKENS} tokens: RSS {result.rss_before_large:.0f} before,"
        f" {result.rss_during_large:.0f} during, {result.rss_after_large:.0f} after",
        f"at idle: {result.idle_requests} requests, {result.idle_kv_bytes} bytes of KV cache in use;"
        f" open files {result.files_before} before, {result.files_after} after",
        f"errors logged: {dict(result.errors_logged) or 'none'}",
        *sorted(set(result.wrong + result.lost))[:20],
    ]


def _medians(samples: list[float], parts: int) -> list[float]:
    size = -(-len(samples) // parts)
    return [statistics.median(samples[start : start + size]) for start in range(0, len(samples), size)]


def environment(models: Path, kv_cache_mib: int) -> dict[str, str]:
    """Variables of the server: reloads from ``models``, small caches, so that the limits are reached."""
    return {
        "GUARD_ADMIN": "true",
        "GUARD_MODEL_DIRECTORY": str(models.resolve()),
        "GUARD_KV_CACHE_MIB": str(kv_cache_mib),
        "GUARD_STREAM_IDLE_S": "3",
        "GUARD_CACHE_ENTRIES": "16",  # most questions are for the model
        "GUARD_ACCESS_LOG": "false",
    }
