from __future__ import annotations

import os
from pathlib import Path

import pytest

from guard.engine.cpus import available_cpus, instruction_sets

CORES = len(os.sched_getaffinity(0))


def cgroup(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs_", "cpu.cfs_")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100000 100000", 1),
        ("150000 100000", min(2, CORES)),
        ("50000 100000", 1),
        ("max 100000", CORES),
        ("nonsense", CORES),
    ],
)
def test_cgroup_v2_quota(tmp_path: Path, text: str, expected: int) -> None:
    assert available_cpus(cgroup(tmp_path, cpu_max=text + "\n")) == expected


@pytest.mark.parametrize(("quota", "expected"), [("100000", 1), ("-1", CORES)])
def test_cgroup_v1_quota(tmp_path: Path, quota: str, expected: int) -> None:
    root = cgroup(tmp_path, cpu__cfs_quota_us=quota + "\n", cpu__cfs_period_us="100000\n")
    assert available_cpus(root) == expected


def test_no_cgroup_means_the_affinity(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == CORES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 sse4_1 ssse3 amx_int8\nbugs : avx512f\n", ("sse4_1", "avx2", "amx_int8")),
        ("processor : 0\nFeatures\t: fp asimd asimddp i8mm\n", ("asimddp", "i8mm")),
        ("", ()),
    ],
)
def test_instruction_sets_are_those_that_packing_depends_on(tmp_path: Path, text: str, expected: tuple[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert instruction_sets(tmp_path / "cpuinfo")[1:] == expected
