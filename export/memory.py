"""How much memory there is, and how much an export takes."""

from __future__ import annotations

import math
from pathlib import Path

from export.pipeline import ExportRequest
from export.spec import ModelSpec

#: Bytes a parameter while a profile is exported, compared and run. Resident at most, measured with the 1B shape:
#: 4.0 GiB for float32, 1.3 GiB for int8 and int4. This leaves room for an ONNX Runtime that packs weights differently.
_BYTES = {"none": 5.0, "int8": 2.0, "int4": 1.75, "int4-small": 1.75}
#: The process itself, the reference's layer, KV caches.
_BASE = 1 << 30
#: Of an export alone: bytes of the process, those for whole rows of logits, which an instruct model's are compared by,
#: and bytes a parameter that is written (a guard's output head is not). Figures: docs/decisions/0181-batch-export.md.
_EXPORT_BASE, _EXPORT_LOGITS = 256 << 20, 192 << 20
#: Optimum's has the model in float32 several times over.
_OPTIMUM_BASE, _OPTIMUM_BYTES = 1 << 30, 14
_EXPORT_BYTES = {"none": 5.3, "int8": 1.3, "int4": 1.45, "int4-small": 1.45}


def needed_bytes(spec: ModelSpec, profile: str) -> int:
    """An estimate for an export and what follows it, on the safe side."""
    return _BASE + int(_parameters(spec) * _BYTES[profile])


def peak_estimate(spec: ModelSpec, request: ExportRequest) -> int:
    """An estimate for an export alone: what its process has resident at the most, and a seventh or more above that."""
    written = _parameters(spec)
    if request.exporter == "optimum":
        return _OPTIMUM_BASE + _OPTIMUM_BYTES * written
    if request.task == "guard":
        return _EXPORT_BASE + int((written - spec.vocab_size * spec.hidden_size) * _EXPORT_BYTES[request.quantization])
    return _EXPORT_BASE + _EXPORT_LOGITS + int(written * _EXPORT_BYTES[request.quantization])


def available_bytes(root: Path = Path("/")) -> int | None:
    """What the kernel and the container's limit leave; None where neither can be read."""
    bounds = [bound for bound in (_machine(root), _container(root)) if bound is not None]
    return min(bounds, default=None)


def _parameters(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for shape in spec.expected_tensors().values())


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
