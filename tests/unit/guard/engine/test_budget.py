from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engine.budget import KvBudget


@given(total=st.integers(0, 100), sizes=st.lists(st.integers(0, 60)))
def test_never_more_than_there_is(total: int, sizes: list[int]) -> None:
    budget, peak = KvBudget(total), 0
    taken: list[int] = []
    for size in sizes:
        fits = sum(taken) + size <= total
        assert budget.take(size) == fits
        if fits:
            taken.append(size)
        elif taken:
            budget.give(taken.pop(0))
        peak = max(peak, sum(taken))
        assert budget.used == sum(taken) <= total and budget.peak == peak
    for size in taken:
        budget.give(size)
    assert budget.used == 0 and budget.peak == peak


def test_giving_back_more_than_was_taken_is_a_bug() -> None:
    budget = KvBudget(10)
    assert budget.take(4)
    with pytest.raises(ValueError, match="more bytes given back"):
        budget.give(5)
