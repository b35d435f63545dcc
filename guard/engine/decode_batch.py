"""The KV caches that decode together, as rows of one array a layer: the graph wants a batch to be contiguous."""

from __future__ import annotations

from guard.bundle.manifest import ModelShape
from guard.engine.kv_cache import Float32, KvCache
from guard.engine.pages import Pages

#: Capacities are multiples of this many tokens, so that rows begin at page borders and can be given back alone.
_TOKENS = 256


class DecodeBatch:
    """Rows 0 to n - 1 hold the n caches that have joined, in the order of ``caches``.

    A cache that joins moves in: its ``arrays`` become views of its row, and its own memory goes back to the system. It
    goes on working alone as before. When one leaves, the last row fills the hole. Used from the engine's thread only.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.caches: list[KvCache] = []
        self._shape = shape
        self._rows = 0
        self._capacity = 0
        self._pages: list[Pages] = []

    def arrays(self) -> list[Float32]:
        """Key and value of each layer, float32 [n, kv_heads, capacity, head_dim]."""
        return [pages.array[: len(self.caches)] for pages in self._pages]

    def set(self, caches: list[KvCache]) -> None:
        """Make ``caches`` the ones in the batch, in some order: others leave first, then the new ones join.

        Raises OverloadedError when there is no memory for that; those in the batch are whole then, too.
        """
        self.prune()
        for cache in [cache for cache in self.caches if cache not in caches]:
            self._leave(cache)
        for cache in [cache for cache in caches if cache not in self.caches]:
            self._join(cache)

    def prune(self) -> None:
        """Give back the rows of caches that were freed."""
        for cache in [cache for cache in self.caches if cache.freed]:
            self._vacate(self.caches.index(cache))

    def _join(self, cache: KvCache) -> None:
        self._make_room(len(self.caches) + 1, cache.capacity)
        self._move_in(cache, len(self.caches))
        self.caches.append(cache)

    def _leave(self, cache: KvCache) -> None:
        """Give a cache memory of its own again."""
        own = KvCache(self._shape, cache.capacity)
        for index, home in enumerate(own.arrays):
            cache.move(index, home)
        self._vacate(self.caches.index(cache))

    def _vacate(self, row: int) -> None:
        """Fill ``row`` with the last one, whose pages go back to the system."""
        last = self.caches.pop()
        if row < len(self.caches):
            self.caches[row] = last
            self._move_in(last, row)
        for pages in self._pages:
            pages.release(len(self.caches))

    def _move_in(self, cache: KvCache, row: int) -> None:
        for index, pages in enumerate(self._pages):
            cache.move(index, pages.array[row : row + 1])

    def _make_room(self, rows: int, capacity: int) -> None:
        if rows <= self._rows and capacity <= self._capacity:
            return
        rows = max(rows, 2 * self._rows) if rows > self._rows else self._rows
        if capacity > self._capacity:
            capacity = -(-max(capacity, 2 * self._capacity) // _TOKENS) * _TOKENS
        else:
            capacity = self._capacity
        size = (rows, self._shape.kv_heads, capacity, self._shape.head_dim)
        made = [Pages(size) for _ in range(2 * self._shape.layers)]  # nothing has changed yet if that fails
        for index, pages in enumerate(made):
            for row, cache in enumerate(self.caches):
                cache.move(index, pages.array[row : row + 1])
            self._pages[index : index + 1] = [pages]
        self._rows, self._capacity = rows, capacity
