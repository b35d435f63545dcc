from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.speed.child import Child, EngineFailedError
from benchmarks.speed.engine import Decode, Prefill, Unsupported
from benchmarks.speed.environments import has, pins
from benchmarks.speed.floors import mapped_by, smallest
from benchmarks.speed.interleave import LeaveError, alone, rounds, spread
from benchmarks.speed.limits import CGROUP_V1, CGROUP_V2, MIB, RLIMIT, Limited, method
from benchmarks.speed.memory import Memory, read
from benchmarks.speed.roofline import bytes_per_step, macs_per_token
from benchmarks.speed.variants import SMOLLM2_VARIANTS, VARIANTS
from benchmarks.speed.workloads import text_of


def test_a_text_has_exactly_so_many_tokens() -> None:
    for count in (1, 7, 40, 500):
        assert len(text_of(count, lambda text: len(text.split())).split()) == count


def test_a_text_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text of exactly 3 tokens"):
        text_of(3, lambda text: 2 * len(text.split()))


@given(st.integers(1, 60), st.integers(1, 20))
def test_bisection_finds_the_smallest_that_works(floor: int, step: int) -> None:
    asked: list[int] = []

    def works(value: int) -> bool:
        asked.append(value)
        return value >= floor

    found, failed = smallest(works, 0, 64 * step, step)
    assert found >= floor > failed
    assert found - failed == step
    assert found % step == 0
    assert len(asked) <= 8


def test_bisection_says_when_the_most_is_too_little() -> None:
    with pytest.raises(ValueError, match="64 is too little"):
        smallest(lambda value: False, 0, 64, 32)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_spread_is_in_order(values: list[float]) -> None:
    found = spread(values)
    assert min(values) <= found.p25 <= found.median <= found.p75 <= max(values)
    assert found.count == len(values)


def test_rounds_take_turns_leave_out_the_first_and_end_within_the_budget() -> None:
    calls: list[str] = []

    def engine(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds

    values = rounds(
        {"slow": lambda: engine("slow", 5.0), "fast": lambda: engine("fast", 1.0)},
        most=6,
        least=2,
        budget_s=8,
        warm_up=1,
    )
    assert values == {"slow": [5.0, 5.0], "fast": [1.0] * 6}
    assert calls[:6] == ["slow", "fast", "fast", "slow", "slow", "fast"]  # each round begins with another one


def test_who_leaves_has_no_values() -> None:
    def leave() -> float:
        raise LeaveError

    assert rounds({"gone": leave, "here": lambda: 1.0}, most=2, least=1, budget_s=9) == {"here": [1.0, 1.0]}


def test_locks_are_taken(tmp_path: Path) -> None:
    with alone([tmp_path / "a", tmp_path / "b"]):
        assert (tmp_path / "b").exists()


def test_memory_is_read_by_kind(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("VmRSS: 9 kB\nRssAnon:\t 2048 kB\nRssFile:\t 1024 kB\nRssShmem:\t 512 kB\n")
    assert read(7, tmp_path) == Memory(2.5, 1.0)
    assert read(8, tmp_path) == Memory(0.0, 0.0)


def test_pins_are_read_and_compared() -> None:
    assert pins("# about\nnumpy==1.0\nllama-cpp-python==0.3\n") == {"numpy": "1.0", "llama-cpp-python": "0.3"}
    assert not has({"numpy": "0.0.1"})
    assert not has({"no-such-package": "1"})
    assert has({})


def test_every_peer_has_pinned_requirements_without_an_address() -> None:
    directory = Path("benchmarks/speed/peers/requirements")
    for variant in (*VARIANTS, *SMOLLM2_VARIANTS):
        if variant.environment:
            text = (directory / f"{variant.environment}.txt").read_text()
            lines = [line for line in text.splitlines() if line and not line.startswith("#")]
            assert len(pins(text)) == len(lines)
        assert Path(f"benchmarks/speed/peers/{variant.module}.py").exists()
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def test_groups_are_found_by_what_they_can_limit(tmp_path: Path) -> None:
    assert method(tmp_path / "none", tmp_path / "none").name == RLIMIT
    assert not method(tmp_path / "none", tmp_path / "none").real
    v2 = tmp_path / "v2"
    v2.mkdir()
    assert method(tmp_path / "none", v2).name == RLIMIT  # a directory, but no such limit in it
    assert {CGROUP_V1, CGROUP_V2} != {RLIMIT}


def test_a_limit_on_private_memory_holds() -> None:
    how = method(Path("/nowhere"), Path("/nowhere"))
    with Limited(how, 256 * MIB) as limited:
        fits = limited.run([sys.executable, "-c", "bytearray(8 << 20)"], {}, Path.cwd(), 30)
        too_much = limited.run([sys.executable, "-c", "bytearray(512 << 20)"], {}, Path.cwd(), 30)
        assert limited.most_bytes == 0
    assert fits.returncode == 0
    assert b"MemoryError" in too_much.stderr


@pytest.mark.skipif(not method().real, reason="control groups cannot be made here")
def test_a_real_limit_holds_and_nothing_is_left() -> None:
    how = method()
    grandchild = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with Limited(how, 64 * MIB) as limited:
        too_much = limited.run([sys.executable, "-c", "bytearray(256 << 20)"], {}, Path.cwd(), 30)
        assert limited.most_bytes >= 60 * MIB
        with pytest.raises(subprocess.TimeoutExpired):  # the grandchild keeps the pipes open
            limited.run([sys.executable, "-c", grandchild], {}, Path.cwd(), 2)
    assert too_much.returncode == -9
    assert limited.group is not None
    assert not limited.group.exists()


def test_the_layers_of_the_1b_have_so_many_multiply_adds() -> None:
    assert macs_per_token() == 16 * (2048 * 3072 + 2048 * 2048 + 2048 * 16384 + 8192 * 2048)


def test_a_decode_step_reads_weights_but_not_tables(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    values = {"table": np.zeros((1000, 4), np.float32), "weight": np.zeros((4, 50), np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "id"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("id", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 50])],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert 800 <= bytes_per_step(tmp_path / "model.onnx") < 900


def test_a_worker_speaks_lines_and_survives_what_its_engine_cannot_do(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Child(Path(sys.executable), log) as child:
        with pytest.raises(EngineFailedError, match="nothing is loaded"):
            child.run(Prefill([1]))
        with pytest.raises(EngineFailedError, match="ModuleNotFoundError"):
            child.load("no_such_engine", "guard", Path("weights"), 1)
        child.load("tests.unit.benchmarks.fake_engine", "guard", Path("weights"), 1)
        assert child.run(Prefill([1, 2, 3])) == 3.0
        with pytest.raises(Unsupported, match="one at a time"):
            child.run(Decode([1], 2, 8))
        with pytest.raises(EngineFailedError, match="ValueError: broken"):
            child.run(Prefill([]))
        assert child.memory().resident > 1
    assert "noise" in log.read_text()


def test_who_has_a_bundle_mapped_is_found(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    for pid, path in ((7, tmp_path / "bundle" / "model.onnx.data"), (8, tmp_path / "bundle-2" / "model.onnx.data")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "maps").write_text(f"7f00-7f01 r--p 00000000 fe:00 1 {path}\n")
    assert mapped_by(tmp_path / "bundle", tmp_path) == [7]
