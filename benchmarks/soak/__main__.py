"""python -m benchmarks.soak --minutes 10: mixed traffic, faults and reloads against a server of its own."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks.soak.run import MIB, described, environment, soak
from benchmarks.soak.traffic import read_items
from guard.engine.memory import available_memory
from server.memory import MemoryPlan
from server.settings_sources import load_settings
from tools.server_process import ServerProcess

_KV_CACHE_MIB = 192


def main() -> int:
    """Prints the counts; exit status 1 when anything was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="has the embedded models")
    parser.add_argument("--items", type=Path, default=Path("training/probes.jsonl"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--reload-every-s", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine was doing, for the report")
    args = parser.parse_args()
    variables = environment(args.models, _KV_CACHE_MIB)
    bundles = {name: name for name in ("embedded-guard", "embedded-instruct")}
    flags = {kind: args.models / f"embedded-{kind}" for kind in ("guard", "instruct")}
    plan = MemoryPlan(load_settings(flags, variables), available_memory()).plan
    with ServerProcess(
        [word for kind, path in flags.items() for word in (f"--{kind}", str(path))], variables
    ) as server:
        items = read_items(args.items)
        result = asyncio.run(soak(server, items, bundles, args.minutes * 60, args.reload_every_s, args.seed))
        status = server.stop()
    largest = max(model.total for model in plan.models)
    print("\n".join(described(result, plan.total / MIB, (plan.mapped + largest) / MIB)))
    print(f"exit status of the server: {status}{f'; {args.note}' if args.note else ''}")
    bad = result.wrong or result.lost or result.idle_kv_bytes or result.unsafe_asked != result.unsafe_blocked
    return 1 if bad or status else 0


if __name__ == "__main__":
    raise SystemExit(main())
