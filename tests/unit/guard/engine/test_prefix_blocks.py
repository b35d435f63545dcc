from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.engine.kv_cache import KvCache
from guard.engine.prefix_blocks import BLOCK_TOKENS, PrefixBlocks
from guard.testing import TINY_SHAPE

BLOCK_BYTES = BLOCK_TOKENS * TINY_SHAPE.kv_bytes_per_token
PLENTY = 1000 * BLOCK_BYTES


def ids(length: int, seed: int = 0) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, 500, length).tolist()
    return drawn


def filled(token_ids: Sequence[int]) -> KvCache:
    """A cache that holds, for each token, the sum of all tokens so far: what depends on everything before it."""
    cache = KvCache(TINY_SHAPE, len(token_ids))
    for index, array in enumerate(cache.arrays):
        array[0, :, :, :] = (np.cumsum(token_ids) + index)[None, :, None]
    cache.length = len(token_ids)
    return cache


def loaded(blocks: PrefixBlocks, token_ids: Sequence[int], salt: str = "") -> int:
    """How much of ``token_ids`` is known; checks that it is theirs."""
    cache = KvCache(TINY_SHAPE, len(token_ids))
    count = blocks.load(token_ids, cache, salt)
    assert count == cache.length
    for array, right in zip(cache.arrays, filled(token_ids).arrays, strict=True):
        np.testing.assert_array_equal(array[:, :, :count], right[:, :, :count])
    return count


def test_the_longest_known_beginning_is_found() -> None:
    blocks, first = PrefixBlocks(PLENTY), ids(200)
    assert loaded(blocks, first) == 0
    blocks.keep(first, filled(first))
    assert loaded(blocks, first) == 192
    assert loaded(blocks, [*first[:100], *ids(100, 1)]) == 96
    assert loaded(blocks, [*first[:31], *ids(100, 1)]) == 0
    assert loaded(blocks, [*first, *ids(100, 1)]) == 192


def test_different_salts_share_nothing() -> None:
    blocks, token_ids = PrefixBlocks(PLENTY), ids(100)
    blocks.keep(token_ids, filled(token_ids), "one")
    assert [loaded(blocks, token_ids, salt) for salt in ("one", "two", "", "on", "oneone")] == [96, 0, 0, 0, 0]
    blocks.keep(token_ids, filled(token_ids))
    assert [loaded(blocks, token_ids, salt) for salt in ("one", "two", "")] == [96, 0, 96]
    assert blocks.held_bytes == 6 * BLOCK_BYTES


def test_the_same_tokens_at_another_place_are_another_block() -> None:
    blocks, block = PrefixBlocks(PLENTY), ids(BLOCK_TOKENS)
    blocks.keep([*ids(BLOCK_TOKENS, 1), *block], filled([*ids(BLOCK_TOKENS, 1), *block]))
    assert loaded(blocks, [*block, 1, 2, 3]) == 0


def test_two_tokens_are_always_left_to_compute() -> None:
    blocks, token_ids = PrefixBlocks(PLENTY), ids(3 * BLOCK_TOKENS)
    blocks.keep(token_ids, filled(token_ids))
    for length in range(1, 3 * BLOCK_TOKENS + 1):
        assert length - loaded(blocks, token_ids[:length]) >= min(length, 2)
    assert loaded(blocks, token_ids[: 2 * BLOCK_TOKENS + 2]) == 2 * BLOCK_TOKENS
    assert loaded(blocks, token_ids[: 2 * BLOCK_TOKENS + 1]) == BLOCK_TOKENS


def test_what_is_kept_is_a_copy() -> None:
    blocks, token_ids = PrefixBlocks(PLENTY), ids(64)
    source = filled(token_ids)
    blocks.keep(token_ids, source)
    for array in source.arrays:
        array[:] = -1
    assert loaded(blocks, [*token_ids, 1, 2]) == 64


def test_no_bytes_no_blocks() -> None:
    blocks, token_ids = PrefixBlocks(0), ids(100)
    blocks.keep(token_ids, filled(token_ids))
    assert blocks.held_bytes == 0 and loaded(blocks, token_ids) == 0


def test_a_beginning_longer_than_the_budget_is_kept_as_far_as_it_goes() -> None:
    blocks, token_ids = PrefixBlocks(3 * BLOCK_BYTES), ids(10 * BLOCK_TOKENS)
    blocks.keep(token_ids, filled(token_ids))
    assert blocks.held_bytes == 3 * BLOCK_BYTES
    assert loaded(blocks, token_ids) == 3 * BLOCK_TOKENS


def test_the_least_recently_used_goes_first_and_from_its_end() -> None:
    blocks = PrefixBlocks(4 * BLOCK_BYTES)
    old, new, newest = (ids(2 * BLOCK_TOKENS, seed) for seed in range(3))
    blocks.keep(old, filled(old))
    blocks.keep(new, filled(new))
    assert loaded(blocks, [*old, 1, 2]) == 64  # used again
    blocks.keep(newest[:BLOCK_TOKENS], filled(newest[:BLOCK_TOKENS]))
    assert loaded(blocks, [*new, 1, 2]) == BLOCK_TOKENS
    assert loaded(blocks, [*old, 1, 2]) == 2 * BLOCK_TOKENS
    assert loaded(blocks, [*newest, 1, 2]) == BLOCK_TOKENS


TREE = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), max_size=30)


@settings(max_examples=50, deadline=None)
@given(prompts=TREE, budget=st.integers(0, 8))
def test_blocks_stay_within_the_budget_and_none_is_left_without_those_before_it(
    prompts: list[tuple[int, ...]], budget: int
) -> None:
    blocks = PrefixBlocks(budget * BLOCK_BYTES)
    for path in prompts:
        token_ids = [token for part in path for token in ids(BLOCK_TOKENS, part)] + [1, 2]
        loaded(blocks, token_ids)
        blocks.keep(token_ids, filled(token_ids))
        assert blocks.held_bytes == len(blocks._blocks) * BLOCK_BYTES <= budget * BLOCK_BYTES
        assert loaded(blocks, token_ids) == min(4, budget) * BLOCK_TOKENS
    reachable: set[tuple[int, ...]] = set()
    for path in prompts:
        token_ids = [token for part in path for token in ids(BLOCK_TOKENS, part)] + [1, 2]
        known = loaded(blocks, token_ids) // BLOCK_TOKENS
        reachable |= {path[: depth + 1] for depth in range(known)}
    assert len(reachable) == len(blocks._blocks)
