"""Bulk moderation on a Ray of this machine: two actors, one of which is killed. Each run is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.bulk.judge import LocalGuard
from guard.bulk.local import InProcess
from guard.bulk.run import BulkRequest, moderate
from guard.bulk.source import Source
from guard.errors import BundleError, UnavailableError
from guard.policies import NamedPolicy
from guard.policy import Policy
from tests.unit.bulk.helpers import SECRET, TEXT, quiet, write_rows
from tests.unit.evaluation.helpers import make_tiny_guard

pytest.importorskip("ray", exc_type=ImportError)
ROWS = 240
COLUMNS = ["--text-column", "text", "--id-column", "id"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard with random weights."""
    return make_tiny_guard(tmp_path_factory.mktemp("guard"))


def start(rows: Path, out: Path, bundle: Path, *more: str) -> subprocess.Popen[str]:
    """``guard bulk --engine ray`` with two actors."""
    options = ["--guard", str(bundle), *COLUMNS, "--engine", "ray", "--processes", "2", "--threads", "1", "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "guard.cli", "bulk", str(rows), str(out), *options, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def actors(pid: int) -> Iterator[int]:
    """Processes of actors that judge, below ``pid``."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, children.read_text().split()):
                if Path(f"/proc/{child}/cmdline").read_text().startswith("ray::MapWorker"):
                    yield child
                yield from actors(child)
        except OSError:
            continue


def kill_an_actor(process: subprocess.Popen[str], state: Path) -> None:
    """As soon as the first rows are judged."""
    deadline, before = time.monotonic() + 100, state.stat().st_size
    while state.stat().st_size == before or len(found := sorted(actors(process.pid))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(found[0], signal.SIGKILL)
    assert state.read_bytes().count(b"\n") < ROWS // 2


def test_a_killed_actor_changes_nothing_and_a_run_may_begin_without_ray(bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS, bad=(5, 200))
    guard = LocalGuard(bundle, NamedPolicy("default", Policy()))
    whole = tmp_path / "whole.jsonl"
    moderate(BulkRequest(Source(rows, TEXT, "id"), whole), InProcess(guard), quiet)

    out = tmp_path / "out.jsonl"
    answers = InProcess(guard)
    judge, begun = answers.judge, 0

    def three_chunks(source: Source) -> Iterator[tuple[bytes, ...]]:
        nonlocal begun
        for lines in judge(source):
            if begun == 3:
                raise KeyboardInterrupt
            begun += 1
            yield lines

    answers.judge = three_chunks  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        moderate(BulkRequest(Source(rows, TEXT, "id", batch=4), out), answers, quiet)

    with start(rows, out, bundle, "--batch", "1") as process:
        kill_an_actor(process, tmp_path / "out.jsonl.bulk" / "rows.jsonl")
        said, told = process.communicate(timeout=120)
    assert process.returncode == 4, told
    summary = json.loads(said)
    assert (summary["rows"], summary["resumed"], summary["errors"]) == (ROWS, 12, {"INVALID_INPUT": 2})
    for suffix in ("", ".errors.jsonl"):
        expected = whole.with_name(whole.name + suffix).read_bytes()
        assert out.with_name(out.name + suffix).read_bytes() == expected
    assert SECRET not in said + told


def test_a_cluster_that_is_not_there_is_said(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guard.bulk import ray_data

    def refuse(address: str, **options: object) -> None:
        raise ConnectionError(address)

    monkeypatch.setattr("ray.init", refuse)
    source = Source(write_rows(tmp_path / "rows.jsonl", 3), TEXT)
    backend = ray_data.RayActors(LocalGuard(bundle, NamedPolicy("default", Policy())), 2, "127.0.0.1:1")
    with pytest.raises(UnavailableError, match=r"no Ray cluster \(ConnectionError\)"):
        next(backend.judge(source))


def test_what_a_guard_said_is_passed_on_and_nothing_else() -> None:
    from guard.bulk.ray_data import _reason

    outer, inner = RuntimeError(SECRET), ValueError(SECRET)
    outer.__cause__ = inner
    assert _reason(outer) == "RuntimeError"
    inner.__cause__ = BundleError("weights.bin: not as written")
    assert _reason(outer) == "weights.bin: not as written"
