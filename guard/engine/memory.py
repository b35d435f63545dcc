"""Memory this process may use: the container's limit, not the host's memory."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

#: cgroup v1 says "no limit" with the largest multiple of a page that fits 63 bits.
_NO_LIMIT = 1 << 62
#: Parameters of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Bytes from which on a block is mapped alone and goes straight back. Outputs of nodes are smaller: with fresh
#: pages for each of them a step takes a seventh longer (docs/decisions/0162-graph-nodes.md).
_MAPPED_FROM = 16 << 20
#: Bytes that may stay free at the end of the heap until ``give_back``.
_KEPT = 64 << 20


def available_memory(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the smallest of the machine's memory and the cgroup limit (v2 ``memory.max``, v1 ``limit_in_bytes``)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(cgroup_root / "memory.max"), _limit(cgroup_root / "memory/memory.limit_in_bytes")]
    return min([machine, *(limit for limit in limits if limit is not None)])


def share_one_heap() -> None:
    """For a process that loads and frees models, before its threads start: let all its threads share one heap.

    glibc gives threads heaps of their own, up to eight a core, and keeps the free end of each of them resident:
    malloc_trim does not touch it, and once a large block was freed it may be 64 MiB. Every version of a model has new
    threads, so with each one more of these heaps were left so. Figures: docs/benchmarks/soak.md.
    """
    with suppress(AttributeError, OSError):  # only glibc has it
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return what was freed to the system; takes some milliseconds.

    The C library keeps freed memory for the next who ask. A model that is loaded and freed on one thread and then
    another leaves half its size behind each time: five reloads of a 200 MiB model went from 238 to 684 MiB. What it
    returns is all of it only where ``share_one_heap`` was called.
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
