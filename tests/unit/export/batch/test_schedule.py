from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from export.batch.schedule import Schedule

NEEDS = st.lists(st.integers(0, 100), max_size=12)


@given(NEEDS, st.integers(100, 250), st.integers(1, 5), st.data())
def test_the_sum_stays_within_the_bound_and_nothing_waits_that_fits(
    needs: list[int], limit: int, parallel: int, data: st.DataObject
) -> None:
    """Exports end in any order; each runs once, and never is there room for one that waits."""
    by_name = {str(index): need for index, need in enumerate(needs)}
    schedule = Schedule(by_name, limit, parallel)
    running: list[str] = []
    seen: list[str] = []
    while schedule.waiting or running:
        while (name := schedule.start()) is not None:
            running.append(name)
            seen.append(name)
            assert sum(by_name[each] for each in running) <= limit
            assert len(running) <= parallel
        left = limit - sum(by_name[each] for each in running)
        assert len(running) == parallel or all(by_name[name] > left for name in schedule.waiting)
        ended = data.draw(st.sampled_from(running))
        running.remove(ended)
        schedule.done(ended)
    assert sorted(seen) == sorted(by_name)


@given(NEEDS, st.integers(1, 5))
def test_without_a_bound_only_the_number_counts(needs: list[int], parallel: int) -> None:
    schedule = Schedule({str(index): need for index, need in enumerate(needs)}, None, parallel)
    started = [name for _ in needs if (name := schedule.start()) is not None]
    assert started == [str(index) for index in range(min(parallel, len(needs)))]


def test_one_that_waits_is_overtaken_by_what_fits() -> None:
    schedule = Schedule({"first": 60, "large": 80, "small": 40}, limit=100, parallel=9)
    assert [schedule.start(), schedule.start(), schedule.start()] == ["first", "small", None]
    schedule.done("first")
    assert schedule.start() is None
    schedule.done("small")
    assert schedule.start() == "large"
    assert schedule.waiting == ()
