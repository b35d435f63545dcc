"""A random checkpoint of the 1B shape: time and memory of its export, then a verdict and a streamed text from a server.

The weights are noise, so only sizes, times and memory mean anything. Needs about 10 GB of disk in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from guard.client import GenerationOptions, GuardClient
from tools.server_process import ServerProcess

_POLL_S = 0.02


@dataclass(frozen=True)
class Exported:
    """One ``guard export``. Peak memory in MiB: resident, summed over the command's processes."""

    task: str
    quantization: str
    parity: bool
    seconds: float
    peak_mib: int
    bundle_mib: int


@dataclass(frozen=True)
class Served:
    """One server with both models. Milliseconds at the caller; the second verdict has the prompt's prefix cached."""

    quantization: str
    first_verdict_ms: float
    second_verdict_ms: float
    first_token_ms: float
    tokens_per_s: float
    rss_mib: int


def main() -> None:
    """Runs everything and prints a Markdown table, or with ``--json`` one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".cache/1b"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--quantizations", nargs="+", default=["int8", "int4"], metavar="NAME")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for task in ("guard", "instruct"):
        if not (args.work / task).exists():
            guard("synth", "--shape", "1b", "--task", task, "--out", str(args.work / task))
    exports, served = [], []
    for name in args.quantizations:
        exports.append(export(args.work, "guard", name, parity=False))
        exports.append(export(args.work, "guard", name, parity=True))
        exports.append(export(args.work, "instruct", name, parity=True))
        served.append(serve(args.work, name))
    if args.json:
        print(json.dumps({"exports": [asdict(each) for each in exports], "served": [asdict(each) for each in served]}))
        return
    print("| export | parity check | seconds | peak MiB | bundle MiB |\n|---|---|---:|---:|---:|")
    for each in exports:
        checked = "yes" if each.parity else "no"
        label = f"{each.task}, {each.quantization}"
        print(f"| {label} | {checked} | {each.seconds:.0f} | {each.peak_mib} | {each.bundle_mib} |")
    print("\n| server, both models | first verdict | second | first token | tokens/s | RSS MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for run in served:
        times = f"{run.first_verdict_ms:.0f} ms | {run.second_verdict_ms:.0f} ms | {run.first_token_ms:.0f} ms"
        print(f"| {run.quantization} | {times} | {run.tokens_per_s:.1f} | {run.rss_mib} |")


def guard(*arguments: str) -> tuple[float, int]:
    """Run a ``guard`` command to its end; returns seconds and peak MiB. Raises CalledProcessError when it fails."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "guard.cli", *arguments], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(resident_mib(pid) for pid in family(process.pid)))
        time.sleep(_POLL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, ["guard", *arguments])
    return time.monotonic() - began, peak


def export(work: Path, task: str, quantization: str, parity: bool) -> Exported:
    """Export the checkpoint of ``task`` to ``work``/task-quantization."""
    out = work / f"{task}-{quantization}"
    shutil.rmtree(out, ignore_errors=True)
    options = [] if parity else ["--no-parity"]
    seconds, peak = guard(
        "export", str(work / task), "--out", str(out), "--task", task, "--quantization", quantization, *options
    )
    size = sum(path.stat().st_size for path in out.iterdir()) >> 20
    return Exported(task, quantization, parity, seconds, peak, size)


def serve(work: Path, quantization: str) -> Served:
    """Serve both bundles; judge twice and write one text."""
    flags = ["--guard", str(work / f"guard-{quantization}"), "--instruct", str(work / f"instruct-{quantization}")]
    with ServerProcess(flags, {"GUARD_CACHE_ENTRIES": "0"}) as server, GuardClient(server.address) as client:
        verdicts = [timed(client, text) for text in ("How do I bake bread?", "How do I bake a cake?")]
        began, arrivals = time.monotonic(), []
        options = GenerationOptions(max_tokens=32, temperature=0.0)
        for delta in client.stream_generate("Tell me a story.", options=options):
            arrivals.append((time.monotonic(), delta.token_count))
        rate = sum(count for _, count in arrivals[1:]) / (arrivals[-1][0] - arrivals[0][0])
        first_token_ms = (arrivals[0][0] - began) * 1000
        return Served(quantization, verdicts[0], verdicts[1], first_token_ms, rate, resident_mib(server.pid))


def timed(client: GuardClient, text: str) -> float:
    """Milliseconds of one verdict."""
    began = time.monotonic()
    client.classify(text)
    return (time.monotonic() - began) * 1000


def family(pid: int) -> Iterator[int]:
    """``pid`` and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(children).split():
            yield from family(int(child))


def resident_mib(pid: int) -> int:
    """VmRSS of a process, 0 once it has ended."""
    lines: Sequence[str] = _read(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS")), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
