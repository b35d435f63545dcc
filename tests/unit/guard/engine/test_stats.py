from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engine.engine import Engine
from guard.engine.kv_cache import KvCache, PrefixStore
from guard.engine.prefix_blocks import BLOCK_TOKENS, PrefixBlocks
from guard.engine.sequence import Decode, Float32, Forward, Job, Ticket
from guard.engine.settings import EngineSettings
from guard.engine.stats import BATCH_BOUNDS, WAIT_BOUNDS, PrefixStats, Tally
from guard.errors import DeadlineError
from guard.testing import TINY_SHAPE, FakeRunner

WAIT = 10.0


def zeros(seen: tuple[int, ...]) -> Float32:
    return np.zeros(512, np.float32)


@given(st.lists(st.floats(0, 100)))
def test_a_tally_counts_every_value_once(values: list[float]) -> None:
    tally = Tally((1.0, 5.0, 50.0))
    for value in values:
        tally.add(value)
    found = tally.snapshot()
    assert sum(found.counts) == len(values)
    assert found.total == pytest.approx(sum(values))
    for index, bound in enumerate(found.bounds):
        assert sum(found.counts[: index + 1]) == len([value for value in values if value <= bound])


def test_an_engine_counts_what_it_does() -> None:
    def writes(ticket: Ticket[int]) -> Job[int]:
        caches = tuple(KvCache(TINY_SHAPE, 100) for _ in range(3))
        for cache in caches:
            yield Forward(cache, list(range(40)), [39])
        for token in range(5):
            yield Decode(caches, (token,) * 3)
        for cache in caches:
            cache.free()
        return ticket.kv_bytes

    engine = Engine(FakeRunner(zeros), EngineSettings(kv_bytes=100, prefill_chunk=20), "test")
    try:
        engine.submit(writes, kv_bytes=60).future.result(WAIT)
        stats = engine.stats
    finally:
        engine.close()
    assert (stats.queued, stats.active, stats.kv_bytes, stats.kv_bytes_peak, stats.kv_bytes_limit) == (0, 0, 0, 60, 100)
    assert (stats.prefill_tokens, stats.decode_tokens) == (3 * 40, 5 * 3)
    assert (stats.steps, stats.failed_steps) == (3 * 2 + 5, 0)
    assert stats.batches.counts == (0, 0, 5, 0, 0, 0, 0, 0)  # 5 steps of 3 sequences: more than 2, at most 4
    assert stats.batches.bounds == BATCH_BOUNDS
    assert stats.batches.total == 15
    assert sum(stats.waits.counts) == 1
    assert stats.waits.bounds == WAIT_BOUNDS


def test_steps_that_fail_are_counted() -> None:
    def breaks(seen: tuple[int, ...]) -> Float32:
        raise RuntimeError("broken")

    def asks(ticket: Ticket[None]) -> Job[None]:
        yield Forward(KvCache(TINY_SHAPE, 10), [1, 2], [1])

    engine = Engine(FakeRunner(breaks), EngineSettings(), "test")
    try:
        with pytest.raises(RuntimeError):
            engine.submit(asks).future.result(WAIT)
        assert (engine.stats.steps, engine.stats.failed_steps, engine.stats.prefill_tokens) == (1, 1, 0)
    finally:
        engine.close()


def test_the_wait_of_jobs_that_never_start_counts_too() -> None:
    def turns(ticket: Ticket[None]) -> Job[None]:
        while True:
            yield None

    engine = Engine(FakeRunner(zeros), EngineSettings(max_active=1), "test")
    try:
        first = engine.submit(turns)
        late = engine.submit(turns, deadline=first.submitted + 0.2)
        with pytest.raises(DeadlineError):
            late.future.result(WAIT)
        waits = engine.stats.waits
    finally:
        engine.close()
    assert sum(waits.counts) == 2
    assert 0.1 < waits.total < WAIT


def test_kept_prefixes_count_their_hits() -> None:
    ids = list(range(2 * BLOCK_TOKENS + 5))
    cache = KvCache(TINY_SHAPE, len(ids))
    cache.length = len(ids)
    blocks = PrefixBlocks(1 << 20)
    assert blocks.load(ids, KvCache(TINY_SHAPE, len(ids))) == 0
    blocks.keep(ids, cache)
    blocks.load(ids, KvCache(TINY_SHAPE, len(ids)))
    assert blocks.stats == PrefixStats(1, 1, 2 * BLOCK_TOKENS, blocks.held_bytes)
    assert blocks.held_bytes > 0

    store = PrefixStore(1 << 20)
    assert store.find(ids) is None
    store.keep(ids, cache)
    found = store.find(ids)
    assert found is not None
    assert store.stats == PrefixStats(1, 1, len(ids), found.bytes)
