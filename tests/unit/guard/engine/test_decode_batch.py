from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.engine.decode_batch import DecodeBatch
from guard.engine.kv_cache import Float32, KvCache
from guard.engine.pages import Pages
from guard.errors import OverloadedError
from guard.testing import TINY_SHAPE

from .resident import linux_only, resident_bytes

SHAPE = replace(TINY_SHAPE, layers=2, kv_heads=2)
RANDOM = np.random.default_rng(5)

Held = list[Float32]  # what a cache must hold: [kv_heads, length, head_dim] for each array


def new_cache(capacity: int, length: int) -> tuple[KvCache, Held]:
    cache = KvCache(SHAPE, capacity)
    held = [RANDOM.random((SHAPE.kv_heads, length, SHAPE.head_dim), np.float32) for _ in cache.arrays]
    for array, values in zip(cache.arrays, held, strict=True):
        array[0, :, :length] = values
    cache.length = length
    return cache, held


def append(batch: DecodeBatch, held: dict[int, Held]) -> None:
    """What a decode step does: one more token in each row, written to the batch's arrays."""
    for row, cache in enumerate(batch.caches):
        if cache.length == cache.capacity:
            continue
        for index, array in enumerate(batch.arrays()):
            value = RANDOM.random((SHAPE.kv_heads, 1, SHAPE.head_dim), np.float32)
            array[row, :, cache.length : cache.length + 1] = value
            held[id(cache)][index] = np.concatenate([held[id(cache)][index], value], axis=1)
        cache.length += 1


def check(batch: DecodeBatch, caches: list[KvCache], held: dict[int, Held]) -> None:
    for cache in caches:
        for array, values in zip(cache.arrays, held[id(cache)], strict=True):
            assert array.shape[0] == 1
            np.testing.assert_array_equal(array[0, :, : cache.length], values)
    arrays = batch.arrays()
    assert len({array.shape for array in arrays}) <= 1
    for row, cache in enumerate(batch.caches):
        assert cache.length <= cache.capacity <= arrays[0].shape[2]
        for array, values in zip(arrays, held[id(cache)], strict=True):
            assert array.flags.c_contiguous and len(array) == len(batch.caches)
            np.testing.assert_array_equal(array[row, :, : cache.length], values)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 700), st.floats(0, 1)), min_size=1, max_size=7),
    steps=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 127)), max_size=8),
)
def test_every_cache_holds_its_own_whoever_joins_and_leaves(
    sizes: list[tuple[int, float]], steps: list[tuple[int, int]]
) -> None:
    batch = DecodeBatch(SHAPE)
    held: dict[int, Held] = {}
    caches: list[KvCache] = []
    for capacity, share in sizes:
        cache, values = new_cache(capacity, int(share * capacity))
        held[id(cache)] = values
        caches.append(cache)
    for present, freed in steps:
        for index, cache in enumerate(caches):
            if freed >> index & 1 and freed & present & 1:  # now and then
                cache.free()
        living = [cache for cache in caches if not cache.freed]
        members = [cache for index, cache in enumerate(caches) if present >> index & 1 and not cache.freed]
        batch.set(members)
        assert sorted(map(id, batch.caches)) == sorted(map(id, members))
        append(batch, held)
        check(batch, living, held)


def test_those_that_stay_keep_their_rows_and_nothing_is_copied() -> None:
    batch = DecodeBatch(SHAPE)
    caches = [new_cache(300, 5)[0] for _ in range(3)]
    batch.set(caches)
    before = [array.ctypes.data for array in batch.arrays()]
    batch.set(caches[::-1])
    assert batch.caches == caches
    assert [array.ctypes.data for array in batch.arrays()] == before


def test_a_hole_is_filled_by_the_last_row() -> None:
    batch = DecodeBatch(SHAPE)
    first, second, third = (new_cache(20, 5)[0] for _ in range(3))
    batch.set([first, second, third])
    first.free()
    batch.prune()
    assert batch.caches == [third, second]
    batch.set([])
    assert batch.caches == [] and all(len(array) == 0 for array in batch.arrays())


def test_a_cache_works_alone_while_it_is_in_the_batch() -> None:
    batch = DecodeBatch(SHAPE)
    (cache, held), (other, _) = new_cache(400, 10), new_cache(400, 10)
    batch.set([other, cache])
    cache.truncate(4)
    for array in cache.arrays:
        array[0, :, 4:6] = 7
    cache.length = 6
    row = batch.caches.index(cache)
    for array, values in zip(batch.arrays(), held, strict=True):
        np.testing.assert_array_equal(array[row, :, :4], values[:, :4])
        assert (array[row, :, 4:6] == 7).all()


@linux_only
def test_nothing_is_resident_once_all_have_gone() -> None:
    """Failure test 18."""
    shape = replace(TINY_SHAPE, layers=1, kv_heads=4, head_dim=64)
    batch = DecodeBatch(shape)
    caches = [KvCache(shape, 4096) for _ in range(4)]  # 8 MiB each
    for cache in caches:
        for array in cache.arrays:
            array[:] = 1
        cache.length = cache.capacity
    full = resident_bytes()
    batch.set(caches)
    gc.collect()
    assert resident_bytes() < full + (9 << 20)  # each moved in and left nothing behind
    for cache in caches:
        cache.free()
    batch.prune()
    assert resident_bytes() < full - (28 << 20)


def test_without_memory_to_grow_it_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, held_first), (second, held_second) = new_cache(100, 40), new_cache(600, 500)
    held = {id(first): held_first, id(second): held_second}
    batch, given = DecodeBatch(SHAPE), []

    def short_of_memory(size: tuple[int, ...]) -> Pages:
        given.append(size)
        if len(given) == 3:
            raise OverloadedError("no memory", 1.0)
        return Pages(size)

    batch.set([first])
    monkeypatch.setattr("guard.engine.decode_batch.Pages", short_of_memory)
    with pytest.raises(OverloadedError):
        batch.set([first, second])
    assert batch.caches == [first]
    check(batch, [first, second], held)
    batch.set([first, second])  # there is memory again
    append(batch, held)
    check(batch, [first, second], held)
