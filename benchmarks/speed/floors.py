"""The smallest memory limit under which a workload completes: a server with its models answers requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.interleave import alone
from benchmarks.speed.limits import MIB, Limited, Method, method

_ROOT = Path(__file__).parents[2]
_STEP_MIB = 64
_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Floor:
    """``mib``: the smallest multiple of the step that sufficed; the next one below did not. ``seconds`` under it and
    ``free_seconds`` without need: a limit that is only just enough makes the kernel read the weights again and again.
    """

    title: str
    mib: int
    failed_mib: int
    seconds: float
    target_mib: int
    at_target_seconds: float | None
    method: str
    real: bool


def smallest(works: Callable[[int], bool], low: int, high: int, step: int) -> tuple[int, int]:
    """The smallest multiple of ``step`` in (low, high] that works, and the one below, which does not, by bisection.

    ``low`` is taken not to work, and whatever is above a limit that works to work too. Raises ValueError when ``high``
    does not.
    """
    below, above = low // step, -(-high // step)
    if not works(above * step):
        raise ValueError(f"{above * step} is too little")
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if works(middle * step) else (middle, above)
    return above * step, below * step


def measure(
    title: str, guard: Path, instruct: Path | None, target_mib: int, high_mib: int, locks: Sequence[Path] = ()
) -> Floor:
    """Raises ValueError when even ``high_mib`` is too little."""
    how = method()
    seconds: dict[int, float] = {}

    def works(mib: int) -> bool:
        with alone(locks):
            taken = attempt(how, mib, guard, instruct)
        print(f"    {title}: {mib} MiB {'no' if taken is None else f'{taken:.1f} s'}", file=sys.stderr, flush=True)
        if taken is not None:
            seconds[mib] = taken
        return taken is not None

    works(target_mib)
    high = target_mib if target_mib in seconds else high_mib
    mib, failed = smallest(lambda each: each in seconds or works(each), 64, high, _STEP_MIB)
    return Floor(title, mib, failed, seconds[mib], target_mib, seconds.get(target_mib), how.name, how.real)


def attempt(how: Method, mib: int, guard: Path, instruct: Path | None) -> float | None:
    """Seconds of the workload under a limit of ``mib``; None when it did not complete."""
    command = [sys.executable, "-m", "benchmarks.speed.floor_work", "--guard", str(guard)]
    if instruct is not None:
        command += ["--instruct", str(instruct)]
    for directory in (guard, instruct):
        if directory is not None:
            if others := mapped_by(directory):
                raise RuntimeError(f"{directory} is mapped by processes {others}: its pages would be charged to them")
            forget(directory)
    with Limited(how, mib * MIB) as limited:
        try:
            done = limited.run(command, {"PYTHONWARNINGS": "ignore"}, _ROOT, _TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
    return _seconds(done.stdout) if done.returncode == 0 else None


def mapped_by(directory: Path, proc: Path = Path("/proc")) -> list[int]:
    """Processes that have files of ``directory`` in their memory."""
    name = f" {directory.resolve()}/".encode()
    found = []
    for maps in proc.glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if name in maps.read_bytes():
                found.append(int(maps.parent.name))
    return found


def forget(directory: Path) -> None:
    """Drop a bundle from the page cache: a group is charged for the pages that it brings in, not for those there."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(stdout: bytes) -> float | None:
    lines: Sequence[bytes] = stdout.splitlines()
    return float(json.loads(lines[-1])["seconds"]) if lines else None
