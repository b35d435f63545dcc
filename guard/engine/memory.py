"""Memory this process may use: the container's limit, not the host's memory."""

from __future__ import annotations

import os
from pathlib import Path

#: cgroup v1 says "no limit" with the largest multiple of a page that fits 63 bits.
_NO_LIMIT = 1 << 62


def available_memory(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the smallest of the machine's memory and the cgroup limit (v2 ``memory.max``, v1 ``limit_in_bytes``)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(cgroup_root / "memory.max"), _limit(cgroup_root / "memory/memory.limit_in_bytes")]
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and 0 < int(text) < _NO_LIMIT else None  # "max": no limit
