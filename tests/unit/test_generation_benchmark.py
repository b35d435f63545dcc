"""The parts of the generation benchmark that need no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.generation import report
from benchmarks.generation.joining import worst_of_bins
from benchmarks.generation.lookup import common_prefix
from benchmarks.generation.prompts import lookup_tasks, minutes
from benchmarks.generation.spread import spread

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(values=VALUES)
def test_a_spread_has_numpys_quantiles(values: list[float]) -> None:
    found = spread(values)
    expected = np.quantile(values, [0, 0.1, 0.5, 0.9, 0.95, 1])
    quantiles = [found.least, found.p10, found.median, found.p90, found.p95, found.most]
    assert quantiles == pytest.approx(expected, abs=1e-6)
    assert found.count == len(values)


@pytest.mark.parametrize(
    ("one", "other", "length"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 5, 3], 1)]
)
def test_a_common_prefix_ends_at_the_first_difference(one: Sequence[int], other: Sequence[int], length: int) -> None:
    assert common_prefix(one, other) == length


def test_bins_keep_the_longest_gap_and_begin_with_the_first() -> None:
    gaps = [(-2.0, 10.0), (-1.6, 30.0), (-1.4, 20.0), (3.0, 5.0)]
    assert worst_of_bins(gaps) == ((0.0, 30.0), (0.5, 20.0), (5.0, 5.0))


def test_the_tasks_are_many_and_of_every_kind() -> None:
    tasks = lookup_tasks()
    assert len(tasks) >= 30
    assert {task.kind for task in tasks} == {"summary", "rewrite", "code", "extract", "translation"}
    assert len({task.prompt for task in tasks}) == len(tasks)
    assert all(task.prompt for task in tasks)


def test_minutes_differ_from_their_first_words_on() -> None:
    assert minutes(2, first_day=1)[:12] != minutes(2, first_day=2)[:12]
    assert minutes(3).count(".") == 3


def test_a_report_has_a_section_for_each_part_that_was_measured() -> None:
    gaps = {"count": 3, "least": 1.0, "p10": 1.0, "median": 20.0, "p90": 30.0, "p95": 40.0, "most": 50.0}
    pairs = [
        {"kind": "code", "tokens": 9, "drafted": 8, "accepted": 6, "speed": 2.0, "cpu_speed": 2.0, "margin": None},
        {"kind": "code", "tokens": 9, "drafted": 8, "accepted": 1, "speed": 1.0, "cpu_speed": 1.0, "margin": 0.25},
    ]
    lookup = {"quantization": "none", "pairs": pairs, "same": 1, "total_speed": 1.5, "total_cpu_speed": 1.25}
    results = {
        "machine": "a machine",
        "streams": [{"streams": 8, "texts": 48, "same": 48, "tokens_per_s": 250.0, "speed": gaps, "cpu_speed": gaps}],
        "lookup": [{**lookup, "speed": gaps, "cpu_speed": gaps}],
        "agreement": [],
    }
    text = report.document(results)
    assert "| 8 | 48 of 48 | 250 | 20.00 (1.00 to 50.00) |" in text
    assert "| float32 | 1 of 2 | 1.50 | 1.25 |" in text
    assert "0.25 (float32)" in text
    assert "7 of 16" in text
    assert "Memory" not in text
    assert "Agreement" not in text
    svg = report.figure(results)
    assert svg.count("<polyline") == 2
