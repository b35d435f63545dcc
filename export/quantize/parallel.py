"""Work on bands of one array in all the CPUs that the container may use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from guard.engine.cpus import available_cpus


def for_each_band(length: int, size: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` with every slice of ``size`` items of ``length``; bands must not depend on each other.

    numpy lets go of the interpreter lock inside its loops, so threads are enough. Which thread does a band changes no
    bit of the result.
    """
    bands = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    if len(bands) == 1:
        work(bands[0])
        return
    for _ in _pool().map(work, bands):
        pass


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(available_cpus(), thread_name_prefix="quantize")
