"""Measures the guard and the generator beside other engines; writes speed.json, speed.md and the figures.

``--parts`` measures some parts anew and keeps the others' figures, ``--workloads`` some rows of a part that is there;
``--peers`` takes only these engines. Peers are
installed into environments of their own and left out, by name and with the reason, where that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speed import exports, figures, floors, report, service
from benchmarks.speed.child import Work
from benchmarks.speed.engine import Classify, Prefill
from benchmarks.speed.interleave import alone
from benchmarks.speed.machine import describe
from benchmarks.speed.merge import merged
from benchmarks.speed.roofline import bytes_per_step, macs_per_token
from benchmarks.speed.team import Plan, Team
from benchmarks.speed.variants import OURS, SMOLLM2_VARIANTS, VARIANTS, Variant, bundle
from benchmarks.speed.workloads import CONVERSATIONS, FORCED_TOKENS, PREFILLS, STREAMS, Prompts

PARTS = ("roofline", "export", "smollm2", "guard", "instruct", "service", "floors")
_MODELS = Path("models")


def main() -> None:
    """Measures, writes and prints."""
    args = _arguments()
    plan = Plan(
        args.cache,
        args.threads or len(os.sched_getaffinity(0)),
        args.rounds,
        longest=args.longest,
        workloads=tuple(args.workloads),
        locks=tuple(args.locks),
    )
    args.cache.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "speed.json"
    results = json.loads(file.read_text(encoding="utf-8")) if args.parts is not None and file.exists() else {}
    results["machine"] = asdict(describe(plan.threads))

    def small(task: str) -> dict[str, Any]:
        return _team(_chosen(SMOLLM2_VARIANTS, args.peers), task, _MODELS / "embedded-guard", plan)

    def large(task: str) -> dict[str, Any]:
        guard = bundle("int8")(args.cache, "guard", Path(sys.executable))
        return _team(_chosen(VARIANTS, args.peers), task, guard, plan)

    def part(name: str, measure: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        return merged(results[name], measure(name)) if args.workloads and name in results else measure(name)

    parts: dict[str, Callable[[], Any]] = {
        "roofline": lambda: _roofline(plan),
        "export": lambda: [asdict(each) for each in exports.measure(args.cache, plan.locks)],
        "smollm2": lambda: {task: small(task) for task in ("guard", "instruct")},
        "guard": lambda: part("guard", large),
        "instruct": lambda: part("instruct", large),
        "service": lambda: [asdict(each) for each in _services(plan)],
        "floors": lambda: [asdict(each) for each in _floors(plan)],
    }
    for name, measure in parts.items():
        if name in (parts if args.parts is None else args.parts):
            print(f"==> {name}", file=sys.stderr, flush=True)
            results[name] = measure()
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "speed.md").write_text(report.document(results), encoding="utf-8")
    for name, svg in figures.figures(results).items():
        (args.out / name).write_text(svg, encoding="utf-8")
    print(report.document(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="only these, or none: write anew; all")
    parser.add_argument(
        "--workloads", nargs="*", default=[], metavar="NAME", help="only those that begin like this; all"
    )
    peers = sorted({variant.peer for variant in VARIANTS} - {OURS})
    parser.add_argument("--peers", nargs="*", choices=peers, help="only these beside our own; all")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="for each engine; 0 is one a processor")
    parser.add_argument("--longest", type=int, default=1 << 20, metavar="TOKENS", help="no longer texts")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="at most, of each workload (%(default)s)")
    parser.add_argument(
        "--locks",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="held while a round is timed: on shared machines",
    )
    return parser.parse_args()


def _chosen(variants: Sequence[Variant], peers: Sequence[str] | None) -> list[Variant]:
    return [each for each in variants if peers is None or each.peer in (OURS, *peers)]


def _works(task: str, prompts: Prompts, longest: int) -> dict[str, Work]:
    """The workloads of one task, by name."""
    if task == "guard":
        kinds = (
            ("warm", {"warm": True}),
            ("cold", {"warm": False}),
            ("warm, generated", {"warm": True, "generated": True}),
        )
        return {
            f"classify {tokens}, {name}": prompts.classify(tokens, **options)
            for tokens in CONVERSATIONS
            if tokens <= longest
            for name, options in kinds
            if tokens == 40 or "generated" not in options
        }
    return {
        **{f"prefill {tokens}": prompts.prefill(tokens) for tokens in PREFILLS if tokens <= longest},
        **{f"decode, {streams} at once": prompts.decode(streams) for streams in STREAMS},
    }


def _team(variants: Sequence[Variant], task: str, guard: Path, plan: Plan) -> dict[str, Any]:
    """``guard`` is the bundle whose prompts and tokens all are given."""
    works = _works(task, Prompts(guard), plan.longest)
    works = {name: work for name, work in works.items() if not plan.workloads or name.startswith(plan.workloads)}
    with Team(variants, task, plan) as team:
        measured = team.measure(works)
        return {
            "workloads": {
                name: {"tokens": _tokens(works[name]), "ms": {key: asdict(each) for key, each in row.items()}}
                for name, row in measured.items()
            },
            "load_s": team.load_s,
            "memory": {name: asdict(each) for name, each in team.memory().items()},
            "skipped": team.skipped,
        }


def _tokens(work: Work) -> int:
    """What has to be computed: of a guard's prompt our own way, with the three forced tokens of its categories."""
    if isinstance(work, Classify):
        return len(work.rest) + FORCED_TOKENS + (0 if work.warm else len(work.prefix))
    return len(work.token_ids) if isinstance(work, Prefill) else work.streams * work.steps


def _roofline(plan: Plan) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed.roofline", str(plan.threads)]
    with alone(plan.locks):
        done = subprocess.run(
            command, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True
        )
    graphs = {
        kind: bundle(kind)(plan.cache, "instruct", Path(sys.executable)) for kind in ("int8", "int4", "int4-small")
    }
    step_bytes = {kind: bytes_per_step(directory / "model.onnx") for kind, directory in graphs.items()}
    return {**json.loads(done.stdout), "macs_per_token": macs_per_token(), "step_bytes": step_bytes}


def _services(plan: Plan) -> list[service.Service]:
    bundles = {f"1B {kind}": bundle(kind)(plan.cache, "guard", Path(sys.executable)) for kind in ("int8", "int4")}
    bundles["embedded int8"] = _MODELS / "embedded-guard"
    return [service.measure(name, directory, plan.locks) for name, directory in bundles.items()]


def _floors(plan: Plan) -> list[floors.Floor]:
    def made(kind: str, task: str) -> Path:
        return bundle(kind)(plan.cache, task, Path(sys.executable))

    sets: tuple[tuple[str, Path, Path | None, int, int], ...] = (
        ("guard int4-small", made("int4-small", "guard"), None, 768, 2048),
        ("guard int8", made("int8", "guard"), None, 1280, 3072),
        ("guard and instruct int4-small", made("int4-small", "guard"), made("int4-small", "instruct"), 2048, 4096),
    )
    return [floors.measure(*each, plan.locks) for each in sets]


if __name__ == "__main__":
    main()
