"""The output in its formats: typed, in order, and with an error where there is no verdict."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from guard.bulk.output import COLUMNS, judged, to_line, unjudged
from guard.bulk.results import format_of, write_errors, write_results
from guard.bulk.source import Item, Problem
from guard.conversation import Conversation, Message, Role, Target
from guard.errors import InvalidInputError

from .helpers import IDENTITY, SECRET, judgement, values

ASKED = Conversation((Message(Role.USER, SECRET),)), Target.PROMPT
TOO_LONG = Problem("INPUT_TOO_LONG", "messages", "200000 tokens, the limit is 131072")


def rows(*ids: Any) -> list[dict[str, Any]]:
    first, second, third = ids
    return [
        judged(Item(1, first, *ASKED), judgement(0.9), "block", IDENTITY),
        unjudged(Item(3, second, problem=TOO_LONG), TOO_LONG, IDENTITY),
        judged(Item(4, third, *ASKED), judgement(0.125, windows=3), "allow", IDENTITY),
    ]


def test_a_row_says_what_was_found_and_by_whom() -> None:
    value = rows("a", "b", "c")[0]
    assert tuple(value) == COLUMNS
    assert value == {
        "row": 1,
        "id": "a",
        "target": "prompt",
        "verdict": "unsafe",
        "action": "block",
        "unsafe_score": 0.9,
        "categories": ["S2"],
        "scores": {"S1": 0.225, "S2": 0.675},
        "decided_by": "model",
        "view": "raw",
        "windows": 1,
        "window_start": 0,
        "window_end": 5,
        "context_left_out": 0,
        "forged_delimiters": False,
        "prompt_tokens": 40,
        "model": "fake",
        "revision": "ab" * 32,
        "policy": "default",
        "error": None,
        "field": None,
        "problem": None,
    }


def test_a_row_without_a_verdict_says_nothing_that_could_be_taken_for_one() -> None:
    value = rows("a", "b", "c")[1]
    assert tuple(value) == COLUMNS
    known = {name: given for name, given in value.items() if given not in (None, [], {})}
    assert known == {
        "row": 3,
        "id": "b",
        "model": "fake",
        "revision": "ab" * 32,
        "policy": "default",
        "error": "INPUT_TOO_LONG",
        "field": "messages",
        "problem": TOO_LONG.problem,
    }


def written(tmp_path: Path, name: str, given: list[dict[str, Any]], integer_ids: bool = False) -> Path:
    out = tmp_path / name
    write_results(lambda: map(to_line, given), out, format_of(out), IDENTITY.codes, integer_ids)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    return out


def test_json_lines(tmp_path: Path) -> None:
    given = rows("a", "ünïcode", None)
    assert values(written(tmp_path, "out.jsonl", given)) == given


def test_csv(tmp_path: Path) -> None:
    text = written(tmp_path, "out.csv", rows("a,b", 'say "x"', 7)).read_text(encoding="utf-8")
    first, second, third = csv.DictReader(io.StringIO(text))
    assert [row["id"] for row in (first, second, third)] == ["a,b", 'say "x"', "7"]
    assert (first["verdict"], first["categories"], first["score_S1"], first["score_S2"]) == (
        *("unsafe", "S2", "0.225", "0.675"),
    )
    assert (second["verdict"], second["unsafe_score"], second["score_S1"], second["error"]) == (
        *("", "", "", "INPUT_TOO_LONG"),
    )
    assert (third["windows"], third["forged_delimiters"], third["error"]) == ("3", "false", "")
    assert "scores" not in first


@pytest.mark.parametrize(
    ("integer_ids", "ids", "kind"), [(True, (7, None, 9), "int64"), (False, ("a", 8, None), "string")]
)
def test_parquet_has_types(tmp_path: Path, integer_ids: bool, ids: tuple[Any, ...], kind: str) -> None:
    given = rows(*ids)
    table = parquet.read_table(written(tmp_path, "out.parquet", given, integer_ids))
    types = {field.name: str(field.type) for field in table.schema}
    assert list(types) == list(COLUMNS)
    assert types["id"] == kind
    assert types["categories"].startswith("list<")
    assert types["scores"] == "struct<S1: double, S2: double>"
    assert (types["unsafe_score"], types["forged_delimiters"], types["windows"]) == ("double", "bool", "int64")
    read = table.to_pylist()
    wanted = [
        {**row, "id": None if row["id"] is None else type("" if kind == "string" else 0)(row["id"])} for row in given
    ]
    wanted[1]["scores"] = {"S1": None, "S2": None}
    assert read == wanted


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_no_rows_are_a_file_too(tmp_path: Path, name: str) -> None:
    out = written(tmp_path, name, [])
    if name == "out.parquet":
        assert parquet.read_table(out).num_rows == 0


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("before")

    def breaks() -> Any:
        yield to_line(rows("a", "b", "c")[0])
        assert out.read_text() == "before"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_results(breaks, out, "jsonl", (), False)
    assert out.read_text() == "before"


def test_errors_stand_apart_with_row_field_and_limit(tmp_path: Path) -> None:
    write_errors(map(to_line, rows("a", "b", "c")), tmp_path / "errors.jsonl")
    assert values(tmp_path / "errors.jsonl") == [
        {"row": 3, "error": "INPUT_TOO_LONG", "field": "messages", "problem": TOO_LONG.problem}
    ]


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"out: expected a file that ends with \.jsonl, .* or say --format"):
        format_of(Path("out.xlsx"))


def test_lines_are_json_of_utf_8() -> None:
    assert json.loads(to_line({"id": "日"}).decode()) == {"id": "日"}
