"""The soak in a short form, with the embedded models, at the limit of the memory plan."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.soak.run import MIB, environment, soak
from benchmarks.soak.traffic import read_items
from guard.engine.memory import available_memory
from server.memory import MemoryPlan
from server.settings_sources import load_settings
from tools.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
_KV_CACHE_MIB = 192


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
        items = [item for item in read_items(ROOT / "training" / "probes.jsonl") if len(item.text) < 1000]
        reloads = {path.name: path.name for path in paths.values()}
        result = asyncio.run(soak(server, items, reloads, seconds=10, reload_every_s=4, at_most=3))
        assert server.stop() == 0
    assert (result.wrong, result.lost, result.errors_logged) == ([], [], {})
    assert result.unsafe_asked == result.unsafe_blocked > 0
    assert sum(result.faults.values()) > 5 and result.reloads >= 1
    assert (result.idle_requests, result.idle_kv_bytes) == (0, 0)
    assert result.rss_highest < needed / MIB
    assert result.rss_end < plan.total / MIB
    assert result.rss_during_large > result.rss_before_large + 60
    prefixes = max(model.prefixes for model in plan.models) / MIB  # what may be kept of its prompt
    assert result.rss_after_large < result.rss_before_large + prefixes + 24
    assert result.files_after <= result.files_before + 2
