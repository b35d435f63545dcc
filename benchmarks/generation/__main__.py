"""Text generation measured: streams together, a long prompt among them, prompt lookup, memory, agreement with float32.

Writes ``generation.json``, ``.md`` and ``.svg``. ``--parts`` measures some parts anew and keeps the others' figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.generation import agreement, joining, lookup, memory, report, streams
from benchmarks.latency import cpu_model
from guard.engine.settings import EngineSettings
from guard.generator import Generator
from guard.runtime import load_instruct

_REQUESTS = 1000


def main() -> None:
    """Measures, writes the three files and prints the tables."""
    args = _arguments()
    directories = [directory for directory in (args.instruct, args.float32, args.int4) if directory]
    settings = EngineSettings(threads=args.threads)
    # In this order: memory wants a process in which nothing else ran.
    parts: dict[str, Callable[[], Any]] = {
        "memory": lambda: asdict(memory.measure(args.instruct, args.threads, args.requests)),
        "joining": lambda: _dicts(joining.measure(args.instruct, args.threads)),
        "streams": lambda: _dicts(_with(args.instruct, settings, streams.measure)),
        "lookup": lambda: _dicts(_with(directory, settings, lookup.measure) for directory in directories),
        "agreement": lambda: _agreement(args.instruct, args.float32, args.int4, settings),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "generation.json"
    results = json.loads(file.read_text(encoding="utf-8")) if args.parts and file.exists() else {}
    results["machine"] = f"{len(os.sched_getaffinity(0))} x {cpu_model()}"
    for name, measure in parts.items():
        if name in (args.parts or parts):
            print(f"==> {name}", file=sys.stderr, flush=True)
            results[name] = measure()
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "generation.md").write_text(report.document(results), encoding="utf-8")
    (args.out / "generation.svg").write_text(report.figure(results), encoding="utf-8")
    print(report.document(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instruct", required=True, metavar="DIR", help="the bundle that is measured")
    parser.add_argument("--float32", metavar="DIR", help="the same model, --quantization none")
    parser.add_argument("--int4", metavar="DIR", help="the same model, --quantization int4")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the files")
    parser.add_argument("--parts", nargs="+", choices=report.PARTS, help="only these; all")
    parser.add_argument("--requests", type=int, default=_REQUESTS, metavar="N", help="of the memory part (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0 is the container's CPU quota")
    return parser.parse_args()


def _with(directory: str, settings: EngineSettings, measure: Callable[[Generator], Any]) -> Any:
    generator = load_instruct(directory, settings)
    try:
        return measure(generator)
    finally:
        generator.close()


def _agreement(instruct: str, float32: str | None, int4: str | None, settings: EngineSettings) -> list[dict[str, Any]]:
    """Of the quantized bundles with ``float32``; nothing without it."""
    if float32 is None:
        return []
    exact = _with(float32, settings, agreement.write)
    others = [directory for directory in (instruct, int4) if directory]
    return _dicts(_with(other, settings, lambda generator: agreement.compare(generator, exact)) for other in others)


def _dicts(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


if __name__ == "__main__":
    main()
