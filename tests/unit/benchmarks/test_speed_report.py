from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.speed.figures import bars, figures
from benchmarks.speed.merge import merged
from benchmarks.speed.reach import goals
from benchmarks.speed.readme import BEGIN, END, rewritten
from benchmarks.speed.report import document, summary

_ROOT = Path(__file__).parents[3]


def _spread(median: float) -> dict[str, float]:
    return {"count": 5, "p25": 0.9 * median, "median": median, "p75": 1.1 * median}


def _part(workloads: dict[str, tuple[int, dict[str, float]]]) -> dict[str, Any]:
    memory = {"anonymous": 100.0, "file_backed": 900.0}
    usage = {"loaded": memory, "steady": memory, "most_anonymous": 120.0, "most_resident": 1020.0}
    return {
        "workloads": {
            name: {"tokens": tokens, "ms": {engine: _spread(ms) for engine, ms in row.items()}}
            for name, (tokens, row) in workloads.items()
        },
        "load_s": {"Guardlet int8": 1.0},
        "memory": {"Guardlet int8": usage, "llama.cpp Q8_0": usage},
        "skipped": {"OpenVINO int8": "its install failed: no disk"},
    }


_SERVICE = {
    "bundle": "1B int8",
    "serving_s": _spread(0.8),
    "loaded": {"anonymous": 90.0, "file_backed": 1000.0},
    "steady": {"anonymous": 170.0, "file_backed": 1000.0},
    "most_anonymous": 200.0,
    "most_resident": 1300.0,
    "round_trip_ms": _spread(200.0),
    "outside_ms": _spread(1.5),
    "between_ms": _spread(1.0),
    "overhead_ms": 2.5,
    "callers": [{"callers": 1, "per_s": 5.0, "latency_ms": _spread(200.0)}],
    "lengths": [{"tokens": 10, "passes": 1, "ms": _spread(100.0)}],
}
_RESULTS: dict[str, Any] = {
    "machine": {
        "cpu": "A Processor", "cpus": 2, "threads": 2, "instructions": ["avx512_vnni"], "memory_gib": 8.0,
        "kernel": "6.1", "python": "3.11", "onnxruntime": "1.31",
    },
    "roofline": {
        "threads": 2, "read_gb_s": 20.0, "int8_gmac_s": {"128": 400.0, "512": 500.0}, "int8_by_shape": {"qkv": 500.0},
        "int8_peak": 500.0,
        "macs_per_token": 1_000_000_000, "step_bytes": {"int4-small": 500_000_000},
    },
    "guard": _part({
        "classify 40, warm": (100, {"Guardlet int8": 250.0, "llama.cpp Q8_0": 1000.0, "OpenVINO int4": 800.0}),
    }),
    "instruct": _part({
        "prefill 128": (128, {"Guardlet int4-small": 300.0, "Guardlet int8": 200.0, "llama.cpp Q8_0": 300.0}),
        "decode, 1 at once": (32, {"Guardlet int4-small": 1000.0, "llama.cpp Q4_0": 1300.0}),
        "decode, 8 at once": (256, {"Guardlet int4-small": 2000.0}),
    }),
    "service": [_SERVICE],
    "floors": [{
        "title": "guard int4", "mib": 640, "failed_mib": 608, "seconds": 9.0, "target_mib": 768,
        "at_target_seconds": 4.0, "method": "control group v1", "real": True,
    }],
    "export": [{"quantization": "int8", "seconds": 20.0, "peak_mib": 700}],
}  # fmt: skip


def _goal(results: dict[str, Any], beginning: str) -> tuple[str, bool | None]:
    (found,) = [goal for goal in goals(results) if goal.name.startswith(beginning)]
    return found.measured, found.reached


def test_goals_compare_with_the_fastest_peer_of_the_same_run() -> None:
    assert _goal(_RESULTS, "Classify 40 tokens, warm: beside") == ("3.20x (OpenVINO int4)", True)
    assert _goal(_RESULTS, "Prefill 128") == ("1.50x (llama.cpp Q8_0)", False)
    assert _goal(_RESULTS, "Decode int4-small, one stream: beside") == ("1.30x (llama.cpp Q4_0)", True)
    assert _goal(_RESULTS, "Decode int4-small: tokens/s of 8") == ("4.00x", True)


def test_goals_compare_with_the_limits_of_the_machine() -> None:
    # 100 tokens of a billion products at 500 GMAC/s take 200 ms; 32 steps of 0.5 GB at 20 GB/s take 800 ms.
    assert _goal(_RESULTS, "Classify 40 tokens, warm: of the 8-bit peak") == ("80%", False)
    assert _goal(_RESULTS, "Decode int4-small, one stream: of the memory") == ("80%", True)


def test_absolute_goals() -> None:
    assert _goal(_RESULTS, "1B guard int8: seconds") == ("0.8", True)
    assert _goal(_RESULTS, "1B guard int8: anonymous") == ("170", False)
    assert _goal(_RESULTS, "Container floor, guard int4") == ("640", True)
    assert _goal(_RESULTS, "Export of the 1B, int8: MiB") == ("700", False)


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    only = {"machine": _RESULTS["machine"]}
    assert {goal.reached for goal in goals(only)} == {None}
    assert "not measured" in document(only)
    assert figures(only) == {}


def test_the_document_names_who_is_missing_and_why() -> None:
    text = document(_RESULTS)
    assert "- OpenVINO int8: its install failed: no disk" in text
    assert "**250** (225 to 275)" in text
    assert "**800**" not in text
    assert "A Processor (avx512_vnni), 8 GiB" in text


def test_a_failed_workload_is_an_empty_cell() -> None:
    results = copy.deepcopy(_RESULTS)
    results["instruct"]["workloads"]["prefill 128"]["ms"] = {}
    assert "| prefill 128 |" in document(results)


def test_figures_are_xml_with_a_bar_for_each_engine() -> None:
    found = figures(_RESULTS)
    assert set(found) == {"speed.svg", "speed-service.svg"}
    for svg in found.values():
        ElementTree.fromstring(svg)
    assert bars("t", [("g", {"Guardlet": 1.0, "a & b": 2.0})]).count("<rect") == 3


def test_the_readme_block_is_replaced_and_nothing_else() -> None:
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    block = summary(_RESULTS)
    assert rewritten(readme, block) == f"before\n{BEGIN}\n{block}\n{END}\nafter\n"
    assert rewritten(rewritten(readme, block), block) == rewritten(readme, block)
    assert "| classify 40, warm (100 tokens) | 250 ms | 800 ms, OpenVINO int4 | 3.2x |" in block


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_a_readme_without_its_markers_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected one"):
        rewritten(text, "block")


def test_workloads_that_are_measured_again_replace_theirs_alone() -> None:
    before = _part(
        {
            "prefill 128": (128, {"Guardlet int8": 200.0, "llama.cpp Q8_0": 400.0}),
            "prefill 512": (512, {"Guardlet int8": 900.0, "llama.cpp Q8_0": 1800.0}),
        }
    )
    before["skipped"] |= {"OpenVINO int4: prefill 512": "too long", "OpenVINO int4: prefill 128": "no"}
    again = _part({"prefill 512": (512, {"Guardlet int8": 800.0})}) | {"load_s": {}, "memory": {}, "skipped": {}}
    found = merged(before, again)
    assert found["workloads"]["prefill 128"] == before["workloads"]["prefill 128"]
    assert found["workloads"]["prefill 512"] == again["workloads"]["prefill 512"]
    assert (found["load_s"], found["memory"]) == (before["load_s"], before["memory"])
    assert found["skipped"] == {
        "OpenVINO int8": "its install failed: no disk",
        "OpenVINO int4: prefill 128": "no",
        "llama.cpp Q8_0: prefill 512": "not in the run that measured this again",
    }


def test_the_readme_shows_what_was_measured() -> None:
    results = json.loads((_ROOT / "docs/benchmarks/speed.json").read_text(encoding="utf-8"))
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    assert rewritten(readme, summary(results)) == readme
    assert (_ROOT / "docs/benchmarks/speed.md").read_text(encoding="utf-8") == document(results)
