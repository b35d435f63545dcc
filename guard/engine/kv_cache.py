"""The KV cache of one sequence, and the prefixes whose KV is kept for the next one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.bundle.manifest import ModelShape
from guard.engine.pages import Pages
from guard.engine.stats import PrefixStats
from guard.errors import InputTooLongError

Float32 = npt.NDArray[np.float32]


class KvCache:
    """Keys and values of up to ``capacity`` tokens: ``arrays`` holds key and value of each layer in turn, each float32
    [1, kv_heads, capacity, head_dim]. Pages are touched as tokens arrive, so spare capacity costs no resident memory,
    but for one that is told that it will be ``filled``.
    """

    def __init__(self, shape: ModelShape, capacity: int, *, filled: bool = False) -> None:
        self.capacity = capacity
        self.length = 0
        self.freed = False
        self._pages = Pages((2 * shape.layers, 1, shape.kv_heads, capacity, shape.head_dim), filled=filled)
        self.arrays: list[Float32] = list(self._pages.array)

    def free(self) -> None:
        """Nobody will use this cache any more: its memory may go back."""
        self.freed = True

    def move(self, index: int, home: Float32) -> None:
        """Let ``arrays[index]`` live in ``home`` [1, kv_heads, at least capacity, head_dim] from now on."""
        home[:, :, : self.length] = self.arrays[index][:, :, : self.length]
        self.arrays[index] = home
        self._pages.release(index)

    def grow_to(self, tokens: int) -> None:
        """Check that ``tokens`` fit; raises InputTooLongError otherwise."""
        if tokens > self.capacity:
            raise InputTooLongError("messages", tokens, self.capacity)

    def load_prefix(self, prefix: KvPrefix) -> None:
        """Start from a kept prefix: copies its keys and values and sets ``length``."""
        self.grow_to(prefix.length)
        for array, kept in zip(self.arrays, prefix.arrays, strict=True):
            array[:, :, : prefix.length] = kept
        self.length = prefix.length

    def copy_from(self, other: KvCache) -> None:
        """Hold what ``other`` holds."""
        self.grow_to(other.length)
        for array, source in zip(self.arrays, other.arrays, strict=True):
            array[:, :, : other.length] = source[:, :, : other.length]
        self.length = other.length

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first ``length``."""
        self.length = min(self.length, length)


@dataclass(frozen=True)
class KvPrefix:
    """A copy of the first ``length`` tokens of a KvCache."""

    token_ids: tuple[int, ...]
    arrays: tuple[Float32, ...]

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.token_ids)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(array.nbytes for array in self.arrays)


class PrefixStore:
    """The most recently used prefixes within a byte budget. Used from the engine's thread only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prefixes: OrderedDict[tuple[int, ...], KvPrefix] = OrderedDict()
        self._hits, self._misses, self._hit_tokens, self._bytes = 0, 0, 0, 0

    @property
    def stats(self) -> PrefixStats:
        """How it went so far; any thread may ask."""
        return PrefixStats(self._hits, self._misses, self._hit_tokens, self._bytes)

    def find(self, token_ids: Sequence[int]) -> KvPrefix | None:
        """The kept prefix with exactly these tokens."""
        key = tuple(token_ids)
        prefix = self._prefixes.get(key)
        if prefix is None:
            self._misses += 1
            return None
        self._prefixes.move_to_end(key)
        self._hits += 1
        self._hit_tokens += prefix.length
        return prefix

    def keep(self, token_ids: Sequence[int], cache: KvCache) -> None:
        """Copy the KV of ``token_ids``, the first tokens of ``cache``; the least recently used prefixes make room."""
        key = tuple(token_ids)
        arrays = tuple(array[:, :, : len(key)].copy() for array in cache.arrays)
        prefix = KvPrefix(key, arrays)
        if prefix.bytes > self._max_bytes:
            return
        self._prefixes[key] = prefix
        while (held := sum(kept.bytes for kept in self._prefixes.values())) > self._max_bytes:
            self._prefixes.popitem(last=False)
        self._bytes = held
