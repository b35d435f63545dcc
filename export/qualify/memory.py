"""How much memory there is, and how much a profile takes."""

from __future__ import annotations

import math
from pathlib import Path

from export.spec import ModelSpec

#: Bytes a parameter while a profile is exported, compared and run. Resident at most, measured with the 1B shape:
#: 4.0 GiB for float32, 1.3 GiB for int8 and int4. This leaves room for an ONNX Runtime that packs weights differently.
_BYTES = {"none": 5.0, "int8": 2.0, "int4": 1.75}
#: The process itself, the reference's layer, KV caches.
_BASE = 1 << 30


def needed_bytes(spec: ModelSpec, profile: str) -> int:
    """An estimate, on the safe side."""
    parameters = sum(math.prod(shape) for shape in spec.expected_tensors().values())
    return _BASE + int(parameters * _BYTES[profile])


def available_bytes(root: Path = Path("/")) -> int | None:
    """What the kernel and the container's limit leave; None where neither can be read."""
    bounds = [bound for bound in (_machine(root), _container(root)) if bound is not None]
    return min(bounds, default=None)


def _machine(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kib[0]) * 1024 if kib else None


def _container(root: Path) -> int | None:
    """cgroup v2: the limit, less what is used and cannot be dropped."""
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))
