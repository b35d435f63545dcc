from __future__ import annotations

import pytest

from guard.engine.kv_cache import KvCache, PrefixStore
from guard.errors import InputTooLongError
from guard.testing import TINY_SHAPE

BYTES = TINY_SHAPE.kv_bytes_per_token


def filled(tokens: int, value: float) -> KvCache:
    cache = KvCache(TINY_SHAPE, 16)
    for array in cache.arrays:
        array[:, :, :tokens] = value
    cache.length = tokens
    return cache


def test_capacity_is_what_the_shape_says() -> None:
    cache = KvCache(TINY_SHAPE, 16)
    assert sum(array.nbytes for array in cache.arrays) == 16 * BYTES
    with pytest.raises(InputTooLongError, match="17 tokens, the limit is 16"):
        cache.grow_to(17)


def test_prefix_is_copied_both_ways() -> None:
    store = PrefixStore(1 << 20)
    source = filled(4, 7.0)
    store.keep((1, 2, 3), source)
    source.arrays[0][:] = 0
    kept = store.find((1, 2, 3))
    assert kept is not None and kept.length == 3
    target = KvCache(TINY_SHAPE, 8)
    target.load_prefix(kept)
    assert target.length == 3
    assert all((array[:, :, :3] == 7).all() and (array[:, :, 3:] == 0).all() for array in target.arrays)
    assert store.find((1, 2)) is None


def test_store_keeps_the_most_recently_used_within_its_bytes() -> None:
    store = PrefixStore(4 * BYTES)
    store.keep((1, 1), filled(2, 1))
    store.keep((2, 2), filled(2, 2))
    assert store.find((1, 1)) is not None
    store.keep((3, 3), filled(2, 3))
    assert store.find((2, 2)) is None and store.find((1, 1)) is not None and store.find((3, 3)) is not None
    store.keep((4,) * 5, filled(5, 4))
    assert store.find((4,) * 5) is None


def test_truncate_forgets_the_tail() -> None:
    cache = filled(5, 1)
    cache.truncate(3)
    assert cache.length == 3
    cache.truncate(9)
    assert cache.length == 3
