"""guard bulk on a tiny bundle: what it leaves, what it says, and what a kill costs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from guard.cli import main
from tests.unit.bulk.helpers import SECRET, values, write_rows
from tests.unit.evaluation.helpers import make_tiny_guard

ROWS = 400
COLUMNS = ["--text-field", "text", "--id-field", "id"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_guard(tmp_path_factory.mktemp("bulk"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 12)


def test_a_file_is_judged(bundle: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["bulk", str(rows), str(out), "--guard", str(bundle), *COLUMNS]) == 0
    said, progress = capsys.readouterr()
    assert said.startswith("12 rows: ")
    assert "0 without a verdict; 12 judged in 0:0" in said
    assert "  0/12 rows\n" in progress
    assert "  12/12 rows, " in progress
    assert [(row["id"], row["model"]) for row in values(out)] == [(index, "tiny-guard") for index in range(12)]
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == b""


def test_rows_without_a_verdict_have_a_status_of_their_own(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 12, bad=(3, 5))
    with rows.open("a") as file:
        file.write(f"{{{SECRET}\n")
    out, errors = tmp_path / "out.parquet", tmp_path / "bad.jsonl"
    options = ["--guard", str(bundle), *COLUMNS, "--errors", str(errors), "--json"]
    assert main(["bulk", str(rows), str(out), *options]) == 4
    said, progress = capsys.readouterr()
    summary = json.loads(said)
    assert (summary["rows"], summary["errors"], summary["resumed"]) == (13, {"INVALID_INPUT": 3}, 0)
    assert summary["identity"]["policy"] == "default"
    assert [row["row"] for row in values(errors)] == [4, 6, 13]
    table = parquet.read_table(out).to_pylist()
    assert [row["verdict"] is None for row in table] == [index in (3, 5, 12) for index in range(13)]
    assert [row["id"] for row in table] == [*range(12), None]
    assert all(SECRET not in text for text in (said, progress, errors.read_text(), str(table)))


def test_a_response_is_judged_after_its_prompt(bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("ask,reply\nHow?,So.\nWhy?,\n", encoding="utf-8")
    out = tmp_path / "out.csv"
    base = ["bulk", str(rows), str(out), "--guard", str(bundle)]
    assert main([*base, "--prompt-column", "ask", "--response-column", "reply"]) == 4
    assert [line.split(",")[2] for line in out.read_text().splitlines()] == ["target", "response", ""]
    for name, target in (("prompt", "prompt"), ("response", "response")):
        column = "ask" if name == "prompt" else "reply"
        assert main([*base, f"--{name}-column", column, "--limit", "1", "--restart"]) == 0
        assert [line.split(",")[2] for line in out.read_text().splitlines()] == ["target", target]


def test_policies_and_their_changes_apply(bundle: Path, rows: Path, tmp_path: Path) -> None:
    policies = tmp_path / "policies.yaml"
    policies.write_text(f"policies:\n  strict:\n    action: shadow\n    deny: ['{SECRET} 7']\n", encoding="utf-8")
    out = tmp_path / "out.jsonl"
    options = ["--policies", str(policies), "--policy", "strict", "--threshold", "1", "--exclude", "S2"]
    assert main(["bulk", str(rows), str(out), "--guard", str(bundle), *COLUMNS, *options]) == 0
    judged = values(out)
    assert {row["policy"] for row in judged} == {"strict"}
    assert [row["id"] for row in judged if row["verdict"] == "unsafe"] == [7]
    assert judged[7]["action"] == "report"
    assert all("S2" not in row["scores"] for row in judged)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--text-column", "text", "--prompt-column", "x"], "columns: either --text-column, or --prompt-column"),
        (["--role", "user"], "columns: --role goes with --text-column"),
        (["--processes", "0"], "processes: expected at least 1"),
        (["--threads", "-1"], "threads: expected at least 1"),
        (["--batch", "0"], "batch: expected at least 1"),
        (["--limit", "0"], "limit: expected at least 1"),
        (["--ray-address", "auto"], "--ray-address: goes with --engine ray"),
        (["--policy", "mine"], "policy_name: there is no policy of that name"),
        (["--threshold", "2"], "policy.threshold: expected a number above 0 and at most 1"),
        ([], "rows.jsonl: none of 12 rows can be judged; row 1: messages: missing"),
    ],
)
def test_wrong_options_are_refused(
    bundle: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    assert main(["bulk", str(rows), str(tmp_path / "out.jsonl"), "--guard", str(bundle), *options]) == 1
    assert line in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_processes_with_weights_of_their_own_are_pointed_out(
    bundle: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["bulk", str(rows), str(out), "--guard", str(bundle), *COLUMNS, "--processes", "2"]) == 0
    assert "each of the 2 processes has its own weights; guard pack makes" in capsys.readouterr().err


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, with no right to leave anything behind."""
    command = [sys.executable, "-W", "error", "-m", "guard.cli", "bulk", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as a terminal's; nohup's would ignore it
    )
    with process:
        yield process
    deadline = time.monotonic() + 20
    while _group(process.pid):
        assert time.monotonic() < deadline, "processes were left"
        time.sleep(0.02)


def _group(leader: int) -> list[int]:
    """The processes of the session that ``leader`` began."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(path: Path, size: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and (not path.exists() or path.stat().st_size < size):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(("name", "processes"), [("out.jsonl", "1"), ("out.parquet", "2")])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    bundle: Path, tmp_path: Path, name: str, processes: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS, bad=(7, 333))
    whole, out = tmp_path / f"whole-{name}", tmp_path / name
    options = ["--guard", str(bundle), *COLUMNS, "--threads", "1"]
    assert main(["bulk", str(rows), str(whole), *options]) == 4
    state = tmp_path / f"{name}.bulk" / "rows.jsonl"
    total = 500 * ROWS  # about what all rows take there
    moments = random.Random(processes)
    for kill in range(3):
        with started(str(rows), str(out), *options, "--processes", processes, "--batch", "4") as process:
            wait_for(state, moments.randrange(total * kill // 4, total * (kill + 1) // 4), process)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    with started(str(rows), str(out), *options, "--processes", processes) as process:
        said, progress = process.communicate()
    assert process.returncode == 4, progress
    assert "of them from an earlier run" in progress
    assert f"{ROWS} rows: " in said
    for suffix in ("", ".errors.jsonl"):
        expected = (tmp_path / f"whole-{name}{suffix}").read_bytes()
        assert (tmp_path / f"{name}{suffix}").read_bytes() == expected
    assert not state.parent.exists()


def test_an_interrupted_run_says_so_and_goes_on(bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    options = [str(rows), str(out), "--guard", str(bundle), *COLUMNS, "--processes", "2", "--batch", "4"]
    with started(*options) as process:
        wait_for(tmp_path / "out.jsonl.bulk" / "rows.jsonl", 5000, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, progress = process.communicate()
    assert (process.returncode, said) == (130, "")
    assert progress.endswith("guard bulk: interrupted\n")
    with started(*options) as process:
        progress = process.communicate()[1]
    assert process.returncode == 0
    assert "of them from an earlier run" in progress
    assert [row["id"] for row in values(out)] == list(range(ROWS))
