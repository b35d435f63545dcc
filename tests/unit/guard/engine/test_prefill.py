from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engine.kv_cache import KvCache
from guard.engine.prefill import Prefill
from guard.engine.sequence import Float32, Forward
from guard.testing import TINY_SHAPE, FakeRunner


def counted(seen: tuple[int, ...]) -> Float32:
    """Logits that tell the place and the token they come after."""
    return np.array([len(seen), seen[-1]], np.float32)


class Chunks(FakeRunner):
    def __init__(self) -> None:
        super().__init__(counted)
        self.sizes: list[int] = []

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        assert len(wanted) > 0 and all(0 <= index < len(token_ids) for index in wanted)
        self.sizes.append(len(token_ids))
        return super().forward(cache, token_ids, wanted)


@given(
    length=st.integers(1, 300),
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=6),
    wanted=st.sets(st.integers(0, 299)),
)
def test_chunks_are_about_as_long_as_asked_and_no_query_is_alone_in_its_block(
    length: int, sizes: list[int], wanted: set[int]
) -> None:
    indexes = sorted(index for index in wanted if index < length)
    runner, cache = Chunks(), KvCache(TINY_SHAPE, length)
    token_ids = list(range(length))
    prefill, step = Prefill(Forward(cache, token_ids, indexes)), 0
    while prefill.left:
        before, size = prefill.left, sizes[step % len(sizes)]
        taken = prefill.step(runner, size)
        assert taken == before - prefill.left and abs(taken - min(before, max(size, 2))) <= 2
        assert taken % 32 != 1 or length == 1
        step += 1
    assert sum(runner.sizes) == length == cache.length
    logits = prefill.logits(runner)
    assert len(logits) == len(indexes)
    assert [row.tolist() for row in logits] == [[index + 1, index] for index in indexes]


def test_the_last_chunk_takes_a_lonely_token_along() -> None:
    runner, cache = Chunks(), KvCache(TINY_SHAPE, 33)
    prefill = Prefill(Forward(cache, list(range(33)), [32]))
    while prefill.left:
        prefill.step(runner, 16)
    assert runner.sizes == [16, 17]


@pytest.mark.parametrize(("length", "sizes"), [(257, [255, 2]), (256, [256]), (258, [256, 2]), (33, [31, 2]), (1, [1])])
def test_a_query_that_would_be_alone_in_its_block_gets_company(length: int, sizes: list[int]) -> None:
    runner, cache = Chunks(), KvCache(TINY_SHAPE, length)
    prefill = Prefill(Forward(cache, list(range(length)), [length - 1]))
    while prefill.left:
        prefill.step(runner, 256)
    assert runner.sizes == sizes


def test_no_logits_wanted_none_given() -> None:
    runner, cache = Chunks(), KvCache(TINY_SHAPE, 5)
    prefill = Prefill(Forward(cache, [1, 2, 3, 4, 5], []))
    prefill.step(runner, 16)
    assert prefill.logits(runner).shape == (0, TINY_SHAPE.vocab_size)
