"""Time and memory of exporting the 1B guard, without the parity check."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.export_1b import guard
from benchmarks.speed.interleave import alone
from benchmarks.speed.variants import checkpoint


@dataclass(frozen=True)
class Export:
    """``peak_mib``: resident, of all its processes together."""

    quantization: str
    seconds: float
    peak_mib: int


def measure(root: Path, locks: tuple[Path, ...] = ()) -> tuple[Export, ...]:
    """One export each, to a directory that goes again."""
    source, out = checkpoint(root, "guard"), root / "exported"
    found = []
    for name in ("int8", "int4"):
        command = ("export", str(source), "--out", str(out), "--task", "guard", "--quantization", name, "--no-parity")
        with alone(locks):
            seconds, peak = guard(*command)
        found.append(Export(name, seconds, peak))
        shutil.rmtree(out)
    return tuple(found)
