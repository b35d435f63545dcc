"""CPUs this process may use: the container's quota, not the host's cores."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

#: The instruction sets between which ONNX Runtime's matrix kernels choose, as Linux names them: each may pack weights
#: in its own way (onnxruntime/core/mlas/lib/platform.cpp). Arm's are in the last line.
_PACKING = (
    *("sse4_1", "avx", "avx2", "fma", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2"),
)


def available_cpus(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """At least 1: the smallest of the CPU affinity and the cgroup quota (v2 ``cpu.max``, v1 ``cpu.cfs_*``), rounded up.

    ONNX Runtime sizes its thread pool to the host (microsoft/onnxruntime#29510), which a quota then throttles.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The architecture, and those of this processor's instruction sets on which the packing of weights depends."""
    lines = _read(cpuinfo).splitlines()
    line = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    present = set(line.partition(":")[2].split())
    return (platform.machine(), *(name for name in _PACKING if name in present))


def _quota_v2(root: Path) -> float | None:
    fields = _read(root / "cpu.max").split()
    return _ratio(*fields) if len(fields) == 2 else None


def _quota_v1(root: Path) -> float | None:
    return _ratio(_read(root / "cpu/cpu.cfs_quota_us").strip(), _read(root / "cpu/cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0 or int(quota) == 0:
        return None  # "max" or -1: no quota
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
