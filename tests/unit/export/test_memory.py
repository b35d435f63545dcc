from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.memory import peak_estimate
from export.pipeline import ExportRequest
from export.synthetic import LLAMA_3_2_1B

#: Most resident memory of an export of the 1B shape, MiB: docs/decisions/0181-batch-export.md.
MEASURED = [
    ("guard", "int8", False, 1227),
    ("guard", "int4-small", False, 1349),
    ("instruct", "int8", False, 1642),
    ("instruct", "int8", True, 1648),
    ("instruct", "int4", True, 1794),
    ("instruct", "none", False, 5923),
]


@pytest.mark.parametrize(("task", "quantization", "packed", "mib"), MEASURED)
def test_estimates_lie_above_what_was_measured_and_not_far(
    task: Any, quantization: str, packed: bool, mib: int
) -> None:
    request = ExportRequest("/ck", Path("/out"), task, quantization, packed=packed)
    estimate = peak_estimate(LLAMA_3_2_1B, request) / (1 << 20)
    assert 1.1 * mib < estimate < 1.3 * mib


def test_optimum_takes_much_more() -> None:
    request = ExportRequest("/ck", Path("/out"), "instruct", "none", exporter="optimum")
    direct = ExportRequest("/ck", Path("/out"), "instruct", "none")
    assert peak_estimate(LLAMA_3_2_1B, request) > 2 * peak_estimate(LLAMA_3_2_1B, direct)
