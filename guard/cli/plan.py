"""Tell how much memory a server with these bundles needs: the arithmetic that `guard serve` enforces when it starts.

The figures hold for one process with the default settings. "may be dropped" is memory of files that the system takes
back when it is short, and reads again: a container at its limit stays alive without it, and slows down.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guard.bundle import read_manifest
from guard.cli.output import add_json_option
from guard.engine.cpus import available_cpus
from guard.engine.memory import available_memory
from guard.engine.settings import EngineSettings
from guard.errors import InvalidInputError
from guard.plan import MIB, MIN_KV_TOKENS, ModelPlan, Plan, plan_server

#: What `guard serve` lets wait by default: 16 MiB each for moderation and generation.
_REQUEST_BYTES = 32 * MIB
#: A guard's window with its prompt, and a chat with a long answer: what "streams" are counted in.
_STREAM_TOKENS = {"guard": MIN_KV_TOKENS, "instruct": 2048}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi|k|M|G)?")
_UNITS = {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="DIR", help="the exported bundles of one server")
    parser.add_argument("--memory", metavar="SIZE", help="the container's limit, such as 1Gi (this machine's)")
    parser.add_argument("--cpus", type=float, metavar="N", help="the container's CPU quota (this machine's)")
    parser.add_argument("--kv-cache-mib", type=int, default=0, metavar="N", help="of each model (what is left)")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the plan; exit status 1 when it does not fit."""
    limit = available_memory() if args.memory is None else read_size(args.memory)
    if args.kv_cache_mib < 0:
        raise InvalidInputError("kv_cache_mib", "expected 0 or more")
    if args.cpus is not None and args.cpus <= 0:
        raise InvalidInputError("cpus", "expected a number above 0")
    manifests = [read_manifest(bundle) for bundle in args.bundles]
    plan = plan_server(manifests, EngineSettings(), _REQUEST_BYTES, args.kv_cache_mib * MIB, limit)
    threads = available_cpus() if args.cpus is None else max(1, -int(-args.cpus // 1))
    fits = plan.needed <= limit
    if args.json:
        print(json.dumps(_as_json(plan, limit, threads)))
    else:
        print("\n".join(_lines(plan, limit, threads)))
    return 0 if fits else 1


def read_size(text: str) -> int:
    """Bytes of a Kubernetes quantity such as "768Mi" or "1.5Gi"; raises InvalidInputError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInputError("memory", "expected a number with Ki, Mi, Gi, k, M, G or nothing after it")
    return int(float(match[1]) * _UNITS[match[2]])


def _as_json(plan: Plan, limit: int, threads: int) -> dict[str, Any]:
    models = [
        {**asdict(model), "total": model.total, "kv_tokens": model.kv_tokens, "streams": _streams(model)}
        for model in plan.models
    ]
    shares = {"anonymous": plan.total - plan.file_backed, "file_backed": plan.file_backed}
    totals = {
        "total": plan.total,
        "needed": plan.needed,
        **shares,
        "mapped": plan.mapped,
        "limit": limit,
        "fits": plan.needed <= limit,
    }
    return {**asdict(plan), "models": models, **totals, "threads": threads}


def _lines(plan: Plan, limit: int, threads: int) -> list[str]:
    lines = [_line("process", plan.process, "interpreter, libraries, threads")]
    lines.append(_line("waiting requests", plan.requests, "16 MiB of text each for moderation and generation"))
    for model in plan.models:
        lines += [
            f"{model.name} ({model.task}, {model.quantization})",
            _line("  weights", model.weights, _where(model)),
            _line("  tokenizer", model.tokenizer, ""),
            _line("  working memory", model.workspace, f"of {plan.prefill_chunk} tokens of a prompt at once"),
            _line("  kept prefixes", model.prefixes, "beginnings of prompts, for the next ones"),
            _line("  KV cache", model.kv, f"{model.kv_tokens} tokens x {model.kv_per_token} bytes: {_streams(model)}"
                  f" streams of {_STREAM_TOKENS[model.task]}"),
        ]  # fmt: skip
    if plan.file_backed:
        lines += [
            _line("= when busy", plan.total, "all of it at once"),
            _line("  anonymous of that", plan.total - plan.file_backed, "less than this and it is killed"),
            _line("  in the page cache", plan.file_backed, "less than this and every request waits for the disk"),
            _line("- while busy", plan.total - plan.needed, "of mapped weights may be pushed out, and come back"),
        ]
    lines.append(_line("= needed", plan.needed, f"of {limit / MIB:.0f} MiB: " + ("fits" if plan.needed <= limit else
                       f"{(plan.needed - limit) / MIB:.0f} MiB too much")))  # fmt: skip
    lines.append(_line("+ may be dropped", plan.mapped, "embedding tables, read from the file when needed"))
    lines.append(f"threads {threads}")
    return lines


def _where(model: ModelPlan) -> str:
    if model.file_backed:
        return "mapped from the file, which was packed for this machine; shared between processes"
    return "packed for the processor, embedding table excepted"


def _streams(model: ModelPlan) -> int:
    return model.kv_tokens // _STREAM_TOKENS[model.task]


def _line(name: str, size: int, why: str) -> str:
    return f"{name:<20}{size / MIB:>8.0f} MiB   {why}".rstrip()
