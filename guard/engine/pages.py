"""Memory for KV caches, straight from the system and straight back to it.

numpy's own memory comes from malloc, which keeps what it once had, and asks for 2 MiB pages where the system has them:
a cache of which ten tokens are used would then be resident as a whole.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod

import numpy as np
import numpy.typing as npt

from guard.errors import OverloadedError

Float32 = npt.NDArray[np.float32]

_ITEM = np.dtype(np.float32).itemsize
# Linux only, as is the release of the pages; elsewhere the memory is as good, and freed with the array.
_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)
_NO_HUGE_PAGES = getattr(mmap, "MADV_NOHUGEPAGE", None)
_RELEASE = getattr(mmap, "MADV_DONTNEED", None)
#: What callers are told: by then a request or two will have ended.
_RETRY_S = 1.0


class Pages:
    """float32 zeros of ``shape`` in ``array``; a page is resident once it is written to.

    ``filled``: nearly all of it will be, so pages may be of 2 MiB where the system has them. They come in half the
    time (docs/decisions/0162-graph-nodes.md).

    Raises OverloadedError when the system gives none: RLIMIT_AS and RLIMIT_DATA count what is never written to.
    """

    def __init__(self, shape: tuple[int, ...], *, filled: bool = False) -> None:
        size = max(1, prod(shape)) * _ITEM
        try:
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            raise OverloadedError("the system has no memory for a KV cache", _RETRY_S) from None
        advice = _HUGE_PAGES if filled else _NO_HUGE_PAGES
        if advice is not None:
            with suppress(OSError):  # a kernel that was built without huge pages
                self._memory.madvise(advice)
        self.array: Float32 = np.frombuffer(self._memory, np.float32, prod(shape)).reshape(shape)

    def release(self, row: int) -> None:
        """Give the pages of ``array[row]`` back to the system; what it held is lost, and may or may not read as 0."""
        if _RELEASE is None:
            return
        size = prod(self.array.shape[1:]) * _ITEM
        start = -(-row * size // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (row + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._memory.madvise(_RELEASE, start, end - start)
