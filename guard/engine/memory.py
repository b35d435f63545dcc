"""Memory this process may use: the container's limit, not the host's memory."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

#: cgroup v1 says "no limit" with the largest multiple of a page that fits 63 bits.
_NO_LIMIT = 1 << 62


def available_memory(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the smallest of the machine's memory and the cgroup limit (v2 ``memory.max``, v1 ``limit_in_bytes``)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(cgroup_root / "memory.max"), _limit(cgroup_root / "memory/memory.limit_in_bytes")]
    return min([machine, *(limit for limit in limits if limit is not None)])


def give_back() -> None:
    """Return what was freed to the system; takes some milliseconds.

    The C library keeps freed memory of other threads for them. A model that is loaded and freed on one thread and then
    another leaves half its size behind each time: five reloads of a 200 MiB model went from 238 to 684 MiB.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and 0 < int(text) < _NO_LIMIT else None  # "max": no limit
