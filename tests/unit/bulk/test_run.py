"""A run from its file to its results, killed anywhere."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.bulk.run import BulkRequest, moderate
from guard.bulk.source import Source
from guard.errors import GuardError, InvalidInputError, UnavailableError
from guard.evaluation.rows import Columns

from .helpers import IDENTITY, SECRET, TEXT, FakeBackend, quiet, values, write_rows

BAD = (4, 17)


def request_for(directory: Path, name: str = "out.jsonl", rows: int = 40, **options: Any) -> BulkRequest:
    path = directory / "rows.jsonl"
    if not path.exists():
        write_rows(path, rows, bad=BAD)
    return BulkRequest(Source(path, TEXT, "id", batch=4), directory / name, **options)


def test_every_row_has_its_row_and_bad_ones_stand_apart(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    summary = moderate(request_for(tmp_path), FakeBackend(), lambda *counts: seen.append(counts))
    read = values(tmp_path / "out.jsonl")
    assert [(row["row"], row["id"]) for row in read] == [(index + 1, index) for index in range(40)]
    verdicts = [None if index in BAD else "unsafe" if (index + 1) % 3 == 0 else "safe" for index in range(40)]
    assert [row["verdict"] for row in read] == verdicts
    assert [row["row"] for row in values(tmp_path / "out.jsonl.errors.jsonl")] == [5, 18]
    assert (summary.rows, summary.unsafe, dict(summary.errors)) == (40, verdicts.count("unsafe"), {"INVALID_INPUT": 2})
    assert summary.safe == verdicts.count("safe")
    assert (seen[0], seen[1], seen[-1]) == ((0, 40, 0), (4, 40, 0), (40, 40, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.errors.jsonl", "rows.jsonl"]
    assert SECRET not in "".join(path.read_text() for path in tmp_path.iterdir() if path.name != "rows.jsonl")


class Killed(BaseException):
    """Not an error that anything handles."""


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
@given(kills=st.lists(st.integers(1, 40), max_size=4))
def test_kills_change_nothing(tmp_path_factory: pytest.TempPathFactory, name: str, kills: list[int]) -> None:
    directory = tmp_path_factory.mktemp("kills")
    moderate(request_for(directory, f"whole-{name}"), FakeBackend(), quiet)
    for kill in kills:

        def before(number: int, kill: int = kill) -> None:
            if number == kill:
                raise Killed

        backend = FakeBackend(before)
        if (directory / name).exists():
            break
        with suppress(Killed):
            moderate(request_for(directory, name), backend, quiet)
    if not (directory / name).exists():
        backend = FakeBackend()
        summary = moderate(request_for(directory, name), backend, quiet)
        assert summary.resumed % 4 == 0
        assert len(backend.asked) == 40 - summary.resumed
    for suffix in ("", ".errors.jsonl"):
        expected = (directory / f"whole-{name}{suffix}").read_bytes()
        assert (directory / f"{name}{suffix}").read_bytes() == expected
    assert not (directory / f"{name}.bulk").exists()


def test_a_kill_after_the_results_were_put_there_is_no_new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("guard.bulk.state.RunState.end", lambda state: (_ for _ in ()).throw(Killed))
        moderate(request_for(tmp_path), FakeBackend(), quiet)
    written = (tmp_path / "out.jsonl").read_bytes()
    backend = FakeBackend()
    assert moderate(request_for(tmp_path), backend, quiet).resumed == 40
    assert (backend.asked, (tmp_path / "out.jsonl").read_bytes()) == ([], written)


def interrupted(tmp_path: Path) -> None:
    def before(number: int) -> None:
        if number == 21:
            raise UnavailableError("gone")

    with pytest.raises(UnavailableError):
        moderate(request_for(tmp_path), FakeBackend(before), quiet)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"limit": 30}, "--limit"),
        ({"columns": Columns(text="id")}, "--text-column"),
        ({"id_column": None}, "--id-column"),
    ],
)
def test_a_run_with_other_options_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    interrupted(tmp_path)
    request = request_for(tmp_path)
    backend = FakeBackend()
    with pytest.raises(InvalidInputError, match=named):
        moderate(replace(request, source=replace(request.source, **change)), backend, quiet)
    assert backend.asked == []
    assert moderate(request, backend, quiet).resumed == 20


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"revision": "00" * 32}, "bundle"),
        ({"model": "other"}, "model"),
        ({"policy_digest": "00" * 32}, "policy"),
        ({"mode": "exact"}, "mode"),
    ],
)
def test_a_run_with_another_guard_or_policy_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    interrupted(tmp_path)
    with pytest.raises(InvalidInputError, match=f"began with another {named}"):
        moderate(request_for(tmp_path), FakeBackend(identity=replace(IDENTITY, **change)), quiet)


def test_a_run_over_another_input_is_refused_unless_it_starts_again(tmp_path: Path) -> None:
    interrupted(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 41)
    with pytest.raises(InvalidInputError, match=r"another input \(its SHA-256\);.*--restart"):
        moderate(request_for(tmp_path), FakeBackend(), quiet)
    summary = moderate(request_for(tmp_path, restart=True), FakeBackend(), quiet)
    assert (summary.rows, summary.resumed) == (41, 0)


def test_speed_may_change_between_two_runs(tmp_path: Path) -> None:
    interrupted(tmp_path)
    request = request_for(tmp_path)
    faster = replace(request, source=replace(request.source, batch=7))
    assert moderate(faster, FakeBackend(), quiet).resumed == 20
    assert [row["row"] for row in values(tmp_path / "out.jsonl")] == list(range(1, 41))


def test_an_output_that_is_there_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"out: out\.jsonl is there already; --restart"):
        moderate(request_for(tmp_path), FakeBackend(), quiet)
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    assert not (tmp_path / "out.jsonl.bulk").exists()
    moderate(request_for(tmp_path, restart=True), FakeBackend(), quiet)
    assert len(values(tmp_path / "out.jsonl")) == 40


def test_an_input_that_changes_meanwhile_gives_no_output(tmp_path: Path) -> None:
    def before(number: int) -> None:
        if number == 30:
            with (tmp_path / "rows.jsonl").open("a") as file:
                file.write('{"text": "more"}\n')

    with pytest.raises(InvalidInputError, match=r"rows\.jsonl changed while it was read"):
        moderate(request_for(tmp_path), FakeBackend(before), quiet)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_backend_that_loses_rows_gives_no_output(tmp_path: Path) -> None:
    class Forgetful(FakeBackend):
        def judge(self, source: Source) -> Any:
            yield from list(super().judge(source))[:-1]

    with pytest.raises(GuardError, match="36 rows were judged, the input has 40"):
        moderate(request_for(tmp_path), Forgetful(), quiet)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_of_which_no_row_can_be_judged_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 3)
    request = BulkRequest(Source(tmp_path / "rows.jsonl", Columns()), tmp_path / "out.jsonl")
    with pytest.raises(InvalidInputError, match="none of 3 rows can be judged; row 1: messages: missing"):
        moderate(request, FakeBackend(), quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_file_without_rows_has_an_output_without_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 0)
    assert moderate(request_for(tmp_path), FakeBackend(), quiet).rows == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_file_that_is_broken_as_a_whole_is_refused_before_anything_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\na\nb\n"c"d\n', encoding="utf-8")
    backend = FakeBackend()
    with pytest.raises(InvalidInputError, match="line 4 cannot be read as CSV"):
        moderate(BulkRequest(Source(path, TEXT), tmp_path / "out.jsonl"), backend, quiet)
    assert backend.asked == []


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl.gz", "rows.parquet"])
def test_all_kinds_of_files_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = [f"text {index}" for index in range(9)]
    if name == "rows.parquet":
        parquet.write_table(pyarrow.table({"text": texts}), path)
    elif name == "rows.jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows([["text"], *zip(texts)])
    summary = moderate(BulkRequest(Source(path, TEXT), tmp_path / "out.jsonl"), FakeBackend(), quiet)
    assert (summary.rows, dict(summary.errors)) == (9, {})


@pytest.mark.parametrize(
    "options", [{"name": "rows.jsonl"}, {"errors": Path("rows.jsonl")}, {"errors": Path("out.jsonl")}]
)
def test_no_file_has_two_parts_to_play(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {name: tmp_path / value if isinstance(value, Path) else value for name, value in options.items()}
    with pytest.raises(InvalidInputError, match="must be different files"):
        request_for(tmp_path, **options)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, name: str) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in range(3_000):
            file.write(json.dumps({"id": index, "text": "word " * 800}) + "\n")
    assert path.stat().st_size > 12_000_000
    tracemalloc.start()
    moderate(BulkRequest(Source(path, TEXT, "id"), tmp_path / name), FakeBackend(keep=False), quiet)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
