from __future__ import annotations

import gc

import numpy as np
import pytest

from guard.engine.pages import Pages
from guard.errors import OverloadedError

from .resident import linux_only, resident_bytes

MIB = 1 << 20


@linux_only
def test_memory_is_resident_as_it_is_written_and_goes_back_row_by_row() -> None:
    before = resident_bytes()
    pages = Pages((4, 4 * MIB))  # 16 MiB a row
    assert resident_bytes() < before + 2 * MIB
    pages.array[:, : 2 * MIB] = 1  # half of each row
    assert 30 * MIB < resident_bytes() - before < 36 * MIB
    pages.release(1)
    pages.release(3)
    assert 14 * MIB < resident_bytes() - before < 20 * MIB
    assert (pages.array[[0, 2], : 2 * MIB] == 1).all()


@linux_only
def test_all_goes_back_with_the_last_array() -> None:
    before = resident_bytes()
    array = Pages((1, 8 * MIB)).array
    array[:] = 1
    view = array[:, 5:]
    assert resident_bytes() - before > 30 * MIB
    del array
    assert view[0, 0] == 1  # a view keeps it all
    del view
    gc.collect()
    assert resident_bytes() - before < 2 * MIB


@pytest.mark.parametrize("row_items", [1, 3, 1000, 1024, 1500, 5000])
def test_a_release_never_touches_the_rows_beside(row_items: int) -> None:
    """Rows may begin and end in the middle of a page."""
    pages = Pages((5, row_items))
    for row in (0, 2, 4):
        pages.array[:] = np.arange(1, 6, dtype=np.float32)[:, None]
        pages.release(row)
        for other in set(range(5)) - {row}:
            assert (pages.array[other] == other + 1).all()
        pages.array[row] = 9  # it can be used again
        assert (pages.array[row] == 9).all()


def test_fresh_memory_is_zero_even_when_there_is_none() -> None:
    assert (Pages((2, 3, 4)).array == 0).all()
    assert Pages((2, 0, 4)).array.shape == (2, 0, 4)


def test_a_system_without_memory_is_overloaded() -> None:
    with pytest.raises(OverloadedError, match="no memory") as refused:
        Pages((1 << 45,))  # more than a process can address
    assert refused.value.retry_after_s > 0


@linux_only
@pytest.mark.parametrize("filled", [False, True])
def test_memory_is_zero_and_goes_back_whatever_its_pages(filled: bool) -> None:
    before = resident_bytes()
    array = Pages((2, 4 * MIB), filled=filled).array
    assert not array.any()
    array[:] = 1
    assert resident_bytes() - before > 30 * MIB
    del array
    gc.collect()
    assert resident_bytes() - before < 2 * MIB


@pytest.mark.parametrize(("name", "filled"), [("_HUGE_PAGES", True), ("_NO_HUGE_PAGES", False)])
def test_a_kernel_without_huge_pages_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, name: str, filled: bool
) -> None:
    monkeypatch.setattr(f"guard.engine.pages.{name}", 0x7FFF)  # EINVAL, as such a kernel says
    assert (Pages((1, 5), filled=filled).array == 0).all()
