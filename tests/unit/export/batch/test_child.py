from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export import cli
from export.batch import child as child_module
from export.batch.child import Child, Ending, export_command, memory_kills, peak_bytes
from export.pipeline import ExportRequest


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def end_of(child: Child) -> Ending:
    while (ending := child.poll()) is None:
        time.sleep(0.01)
    return ending


REQUEST = ExportRequest(
    source="/ck",
    out=Path("/out"),
    task="instruct",
    quantization="int4",
    revision="main",
    adapter=Path("/adapter"),
    name="n",
    parity=False,
    calibrate=False,
    max_kl=0.125,
    packed=True,
    sign=Path("/key.pem"),
    overwrite=True,
)


@pytest.mark.parametrize("request_", [REQUEST, ExportRequest("/ck", Path("/out"), "guard", name="n")])
def test_the_command_line_says_all_of_a_request(request_: ExportRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back by the command itself, it is the same request."""
    seen: list[ExportRequest] = []

    def export_model(request: ExportRequest) -> None:
        seen.append(request)
        raise InterruptedError

    monkeypatch.setattr(cli, "export_model", export_model)
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    args = parser.parse_args(export_command(request_, request_.overwrite)[1:])
    with pytest.raises(InterruptedError):
        cli.run(args)
    assert seen == [request_]


def test_an_export_that_works(tiny: Path, tmp_path: Path, lock: int) -> None:
    child = Child(ExportRequest(str(tiny), tmp_path / "a", "instruct", "none", parity=False), False, lock)
    ending = end_of(child)
    assert ending.error is None and (tmp_path / "a" / "manifest.json").is_file()
    assert ending.seconds > 0
    assert ending.peak_bytes is not None and 20 << 20 < ending.peak_bytes < 1 << 30


def test_what_fails_says_why(tmp_path: Path, lock: int) -> None:
    ending = end_of(Child(ExportRequest(str(tmp_path), tmp_path / "a", "instruct"), False, lock))
    assert ending.error is not None and "no config.json" in ending.error


def test_one_that_is_killed_is_told_apart(
    tiny: Path, tmp_path: Path, lock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExportRequest(str(tiny), tmp_path / "a", "instruct")
    child = Child(request, False, lock)
    os.kill(child.pid, signal.SIGKILL)
    error = end_of(child).error
    assert error is not None and error.startswith("killed by SIGKILL, ")

    child = Child(request, False, lock)
    kills = memory_kills()
    monkeypatch.setattr(child_module, "memory_kills", lambda: kills + 1)
    os.kill(child.pid, signal.SIGKILL)
    error = end_of(child).error
    assert error is not None and error.startswith("killed for memory by the system (SIGKILL), ")


@pytest.mark.parametrize("ours", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "nohup"])
def test_one_that_is_stopped_tidies_up(tiny: Path, tmp_path: Path, lock: int, ours: Any) -> None:
    before = signal.signal(signal.SIGINT, ours)
    try:
        child = Child(ExportRequest(str(tiny), tmp_path / "out" / "a", "instruct", "int4"), False, lock)
    finally:
        signal.signal(signal.SIGINT, before)
    while not (tmp_path / "out" / ".a.partial").exists():
        assert child.poll() is None
        time.sleep(0.001)
    child.stop(ask=True, wait_s=60)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_that_does_not_stop_is_killed(tiny: Path, tmp_path: Path, lock: int) -> None:
    child = Child(ExportRequest(str(tiny), tmp_path / "out" / "a", "instruct", "int4"), False, lock)
    began = time.monotonic()
    child.stop(ask=False, wait_s=0)
    assert time.monotonic() - began < 10
    assert peak_bytes(child.pid) is None
    assert not (tmp_path / "out" / "a").exists()


def test_memory_of_this_process() -> None:
    peak = peak_bytes(os.getpid())
    assert peak is not None and peak > 10 << 20
    assert peak_bytes(1 << 30) is None
