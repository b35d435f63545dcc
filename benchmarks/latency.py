"""Latency of Classify and speed of StreamGenerate, one request at a time, over gRPC, against a server of its own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from guard.client import GenerationOptions, GuardClient
from tools.server_process import ServerProcess

_WORDS = "The council met again on Tuesday to talk about the bridge, the school roof and the price of water. "
_SENTENCES = (1, 4, 16, 64)
_NEW_TOKENS = 64


@dataclass(frozen=True)
class Classified:
    """Round trips of one prompt length, in ms at the caller."""

    prompt_tokens: int
    cached_tokens: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Written:
    """One streamed text."""

    tokens: int
    first_token_ms: float
    tokens_per_s: float


@dataclass(frozen=True)
class Result:
    """Everything measured, and on what. Memory in MiB resident."""

    cpu: str
    models: tuple[str, ...]
    classify: tuple[Classified, ...]
    generate: Written
    rss_mib_loaded: int
    rss_mib_after: int


def main() -> None:
    """Measures and prints a table, or with ``--json`` one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guard", required=True, metavar="DIR")
    parser.add_argument("--instruct", required=True, metavar="DIR")
    parser.add_argument("--requests", type=int, default=20, metavar="N", help="of each length (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    flags = ["--guard", args.guard, "--instruct", args.instruct]
    with ServerProcess(flags, {"GUARD_CACHE_ENTRIES": "0"}) as server, GuardClient(server.address) as client:
        loaded = resident_mib(server.pid)
        result = Result(
            cpu=f"{len(os.sched_getaffinity(0))} x {cpu_model()}",
            models=tuple(f"{model.name} ({model.quantization})" for model in client.list_models()),
            classify=tuple(classify(client, sentences, args.requests) for sentences in _SENTENCES),
            generate=generate(client),
            rss_mib_loaded=loaded,
            rss_mib_after=resident_mib(server.pid),
        )
    print(json.dumps(asdict(result)) if args.json else table(result))


def classify(client: GuardClient, sentences: int, requests: int) -> Classified:
    """Every text differs in its first word, so only the fixed prompt is reused."""
    client.classify(_WORDS * sentences)
    times, tokens, cached = [], 0, 0
    for index in range(requests):
        started = time.perf_counter()
        usage = client.classify(f"{index}. {_WORDS * sentences}").usage
        times.append((time.perf_counter() - started) * 1000)
        tokens, cached = usage.prompt_tokens, usage.cached_tokens
    p95 = sorted(times)[max(0, round(0.95 * requests) - 1)]
    return Classified(tokens, cached, statistics.median(times), p95)


def generate(client: GuardClient) -> Written:
    """Greedy, so that runs compare."""
    client.generate("Hello.", GenerationOptions(max_tokens=2))
    started = time.perf_counter()
    stream = client.stream_generate("Tell me a long story.", GenerationOptions(max_tokens=_NEW_TOKENS, temperature=0.0))
    arrivals = [time.perf_counter() for _ in stream]
    written = stream.result().usage.completion_tokens
    return Written(
        tokens=written,
        first_token_ms=(arrivals[0] - started) * 1000,
        tokens_per_s=(written - 1) / (arrivals[-1] - arrivals[0]),
    )


def resident_mib(pid: int) -> int:
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


def cpu_model() -> str:
    """The processor's name as the kernel has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(result: Result) -> str:
    """For people."""
    lines = [f"{result.cpu}; {', '.join(result.models)}", "", "Classify   tokens  of them cached   p50 ms   p95 ms"]
    lines += [
        f"           {row.prompt_tokens:6}  {row.cached_tokens:14}  {row.p50_ms:7.0f}  {row.p95_ms:7.0f}"
        for row in result.classify
    ]
    written = result.generate
    lines += [
        "",
        f"StreamGenerate   first token {written.first_token_ms:.0f} ms, then {written.tokens_per_s:.0f} tokens/s",
        f"Memory           {result.rss_mib_loaded} MiB when loaded, {result.rss_mib_after} MiB at the end (resident)",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
