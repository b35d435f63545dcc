"""What a killed run leaves, and what the next one makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.bulk.state import Job, RunState, check_same
from guard.errors import InvalidInputError

JOB = Job({"input": "a", "policy": ["p", "q"], "--limit": None}, rows=6, integer_ids=True)
LINES = [
    json.dumps({"verdict": verdict, "error": None if verdict else "INPUT_TOO_LONG", "id": "é" * index}).encode() + b"\n"
    for index, verdict in enumerate(["safe", "unsafe", None, "safe", "safe", None])
]


def test_a_run_that_ended_leaves_nothing(tmp_path: Path) -> None:
    with RunState(tmp_path / "run") as state:
        state.begin(JOB)
        assert state.job == JOB
        state.add(LINES)
        assert list(state.lines()) == LINES
        assert (state.tally.safe, state.tally.unsafe, dict(state.tally.errors)) == (3, 1, {"INPUT_TOO_LONG": 2})
        state.end()
    assert list(tmp_path.iterdir()) == []


def test_one_that_began_nothing_leaves_nothing_either(tmp_path: Path) -> None:
    with RunState(tmp_path / "run") as state:
        assert state.job is None
    assert list(tmp_path.iterdir()) == []


@given(cut=st.integers(0, sum(map(len, LINES))), rest=st.sampled_from([b"", b"\0" * 50, b"\0\n{}\n", b"3\n", b"{}\n"]))
def test_a_kill_at_any_byte_costs_no_more_than_the_line_it_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int, rest: bytes
) -> None:
    directory = tmp_path_factory.mktemp("state") / "run"
    with RunState(directory) as state:
        state.begin(JOB)
    whole = b"".join(LINES)[:cut]
    (directory / "rows.jsonl").write_bytes(whole + rest)
    with RunState(directory) as state:
        assert state.job == JOB
        done = state.resume(JOB.rows)
        assert done == whole.count(b"\n")
        state.add(LINES[done:])
        assert list(state.lines()) == LINES
        assert state.tally.rows == 6


def test_more_lines_than_rows_are_cut_off(tmp_path: Path) -> None:
    with RunState(tmp_path / "run") as state:
        state.begin(JOB)
        state.add([*LINES, *LINES])
    with RunState(tmp_path / "run") as state:
        assert state.resume(6) == 6
        assert list(state.lines()) == LINES


def test_two_runs_do_not_write_the_same_state(tmp_path: Path) -> None:
    with RunState(tmp_path / "run") as first:
        first.begin(JOB)
        with pytest.raises(InvalidInputError, match="another run is writing run"), RunState(tmp_path / "run"):
            pass
        first.add(LINES[:1])
        assert list(first.lines()) == LINES[:1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "guardlet-bulk", "version": 2}', "\0\0"])
def test_what_is_no_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with (
        RunState(tmp_path) as state,
        pytest.raises(InvalidInputError, match=r"job\.json is not one of guardlet-bulk 1"),
    ):
        assert state.job


def test_what_changed_is_named() -> None:
    check_same(JOB, dict(JOB.depends_on))
    for name in JOB.depends_on:
        with pytest.raises(InvalidInputError, match=f"began with another {name};"):
            check_same(JOB, {**JOB.depends_on, name: "else"})
    with pytest.raises(InvalidInputError, match="another input, new;"):
        check_same(JOB, {**JOB.depends_on, "input": "b", "new": 1})
