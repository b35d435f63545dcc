"""Which machine, which versions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.latency import cpu_model

#: What 8-bit products depend on.
_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")


@dataclass(frozen=True)
class Machine:
    """As the kernel describes it."""

    cpu: str
    cpus: int
    threads: int
    instructions: tuple[str, ...]
    memory_gib: float
    kernel: str
    python: str
    onnxruntime: str


def describe(threads: int) -> Machine:
    """Of this one; ``threads`` is what each engine was given."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu_model(),
        len(os.sched_getaffinity(0)),
        threads,
        tuple(flag for flag in _FLAGS if flag in flags),
        round(pages / (1 << 30), 1),
        platform.release(),
        platform.python_version(),
        metadata.version("onnxruntime"),
    )
