from __future__ import annotations

import threading

import numpy as np
import pytest

from export.quantize.parallel import for_each_band


@pytest.mark.parametrize(("length", "size"), [(1, 4), (4, 4), (10, 3), (1000, 7)])
def test_every_item_is_worked_on_once(length: int, size: int) -> None:
    counts = np.zeros(length, np.int64)

    def work(band: slice) -> None:
        assert 0 < band.stop - band.start <= size
        counts[band] += 1

    for_each_band(length, size, work)
    assert (counts == 1).all()


def test_a_failure_reaches_the_caller() -> None:
    def work(band: slice) -> None:
        if band.start == 4:
            raise MemoryError("band")

    with pytest.raises(MemoryError, match="band"):
        for_each_band(8, 2, work)


def test_one_band_runs_on_the_caller_itself() -> None:
    seen: list[int] = []
    for_each_band(3, 3, lambda band: seen.append(threading.get_ident()))
    assert seen == [threading.get_ident()]
