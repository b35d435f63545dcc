"""Beginnings of prompts, kept block by block, so that the next prompt with the same beginning computes only the rest.

A block is known by its tokens and everything before them (a chain of hashes, as in vLLM's automatic prefix caching), so
prompts that share a system message, or the earlier turns of a conversation, share those blocks. That a beginning was
known shows in the time a prompt takes. A salt goes before the first token, so those who must not learn what others have
asked share no block.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from guard.engine.kv_cache import KvCache
from guard.engine.stats import PrefixStats

Float32 = npt.NDArray[np.float32]

#: Tokens of a block: small enough that little of a shared beginning is computed again, large enough to copy quickly.
BLOCK_TOKENS = 32
#: A prefill of a single token takes another path through the attention kernel, with other rounding.
_LEFT_TO_COMPUTE = 2


class PrefixBlocks:
    """The most recently used blocks within a byte budget. Used from the engine's thread only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._hits, self._misses, self._hit_tokens = 0, 0, 0
        #: Digest of a block and all before it to its keys and values [2 * layers, kv_heads, BLOCK_TOKENS, head_dim].
        self._blocks: OrderedDict[bytes, Float32] = OrderedDict()

    @property
    def stats(self) -> PrefixStats:
        """How it went so far; any thread may ask."""
        return PrefixStats(self._hits, self._misses, self._hit_tokens, self._bytes)

    @property
    def held_bytes(self) -> int:
        """Memory held."""
        return self._bytes

    def load(self, token_ids: Sequence[int], cache: KvCache, salt: str = "") -> int:
        """Copy the longest beginning of ``token_ids`` known under ``salt`` into the empty ``cache``; returns its
        number of tokens, which leaves at least two to compute.
        """
        found: list[bytes] = []
        for digest in _digests(token_ids[: max(0, len(token_ids) - _LEFT_TO_COMPUTE)], salt):
            if digest not in self._blocks:
                break
            found.append(digest)
        for index, digest in enumerate(found):
            start = index * BLOCK_TOKENS
            for array, kept in zip(cache.arrays, self._blocks[digest], strict=True):
                array[0, :, start : start + BLOCK_TOKENS] = kept
        self._touch(found)
        self._hits, self._misses = self._hits + bool(found), self._misses + (not found)
        self._hit_tokens += len(found) * BLOCK_TOKENS
        cache.length = len(found) * BLOCK_TOKENS
        return cache.length

    def keep(self, token_ids: Sequence[int], cache: KvCache, salt: str = "") -> None:
        """Copy the whole blocks of ``token_ids``, the first tokens of ``cache``, for those who come with ``salt``; the
        least recently used make room.
        """
        kept: list[bytes] = []
        for index, digest in enumerate(_digests(token_ids, salt)):
            if digest not in self._blocks:
                start = index * BLOCK_TOKENS
                block = np.stack([array[0, :, start : start + BLOCK_TOKENS] for array in cache.arrays])
                if (index + 1) * block.nbytes > self._max_bytes:
                    break  # a beginning that cannot be kept whole would push out its own first blocks
                self._blocks[digest] = block
                self._bytes += block.nbytes
            kept.append(digest)
        self._touch(kept)
        while self._bytes > self._max_bytes:
            self._bytes -= self._blocks.popitem(last=False)[1].nbytes

    def _touch(self, digests: Sequence[bytes]) -> None:
        """Mark as used, the first block last: a block is of no use without those before it."""
        for digest in reversed(digests):
            self._blocks.move_to_end(digest)


def _digests(token_ids: Sequence[int], salt: str) -> Iterator[bytes]:
    """One digest for each whole block of ``token_ids``."""
    # The salt's hash is no multiple of a block's bytes, so with and without one there are never the same bytes.
    chain = hashlib.sha256(hashlib.sha256(salt.encode()).digest() if salt else b"")
    ids = np.asarray(token_ids, np.int64)
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        chain.update(ids[start : start + BLOCK_TOKENS].tobytes())
        yield chain.copy().digest()
