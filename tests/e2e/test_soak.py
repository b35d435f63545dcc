"""The soak in a short form, with the embedded models, at the limit of the memory plan."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

import pytest

from benchmarks.soak.run import MIB, environment, soak
from benchmarks.soak.traffic import read_items
from guard.engine.memory import available_memory
from server.memory import MemoryPlan
from server.settings_sources import load_settings
from tools.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
_KV_CACHE_MIB = 192
#: Address space that is never touched: stacks of threads, arenas of malloc, room of KV caches.
_UNTOUCHED = 1 << 30


@pytest.mark.skipif(
    "GUARDLET_SOAK" not in os.environ,
    reason="about one run in two loses a call: docs/benchmarks/soak.md; GUARDLET_SOAK=1 runs it",
)
def test_a_soak_at_the_limit(models: Path) -> None:
    """Failure tests 18, 22 and 26: the plan's memory is enough while requests, faults and reloads come together;
    nothing is wrong, lost or kept, and everything unsafe was blocked.
    """
    variables = environment(models, _KV_CACHE_MIB)
    paths = {kind: models / f"embedded-{kind}" for kind in ("guard", "instruct")}
    plan = MemoryPlan(load_settings(paths, variables), available_memory()).plan
    needed = plan.total + plan.mapped + max(model.fixed for model in plan.models)  # while one is being replaced
    flags = [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
    with ServerProcess(flags, variables) as server:
        limit = needed + _UNTOUCHED
        resource.prlimit(server.pid, resource.RLIMIT_DATA, (limit, limit))
        items = [item for item in read_items(ROOT / "training" / "probes.jsonl") if len(item.text) < 1000]
        reloads = {path.name: path.name for path in paths.values()}
        result = asyncio.run(soak(server, items, reloads, seconds=25, reload_every_s=8, at_most=3))
        assert server.stop() == 0
    assert result.wrong == [] and result.lost == []
    assert result.unsafe_asked == result.unsafe_blocked > 0
    assert sum(result.faults.values()) > 5 and result.reloads >= 1
    assert (result.idle_requests, result.idle_kv_bytes) == (0, 0)
    assert result.rss_highest < needed / MIB
    assert result.rss_end < plan.total / MIB
    assert result.rss_during_large > result.rss_before_large + 60
    prefixes = max(model.prefixes for model in plan.models) / MIB  # what may be kept of its prompt
    assert result.rss_after_large < result.rss_before_large + prefixes + 24
    assert result.files_after <= result.files_before + 2
    assert not result.errors_logged
