"""Rows in order, each with its place, whatever is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.bulk.source import MAX_ID_CHARACTERS, Source
from guard.conversation import Role, Target
from guard.errors import InvalidInputError
from guard.evaluation.rows import Columns

from .helpers import SECRET, TEXT, write_rows


def source(tmp_path: Path, *rows: Any, columns: Columns = TEXT, **options: Any) -> Source:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return Source(path, columns, **options)


def test_rows_keep_their_place_and_say_what_is_wrong(tmp_path: Path) -> None:
    rows = [{"text": "a"}, "", "{", {"text": " "}, {"text": 3}, {}, {"text": "b"}]
    items = list(source(tmp_path, *rows).items())
    assert [item.number for item in items] == [1, 3, 4, 5, 6, 7]
    problems = [(item.problem.field, item.problem.problem) if item.problem else None for item in items]
    assert problems == [
        None,
        ("row", "not a line of JSON in UTF-8"),
        ("messages[0].content", "is empty or only white space"),
        ("text", "expected a string"),
        ("text", "missing"),
        None,
    ]
    assert all((item.conversation is None) == (item.problem is not None) for item in items)


def test_a_prompt_and_its_response_are_one_row(tmp_path: Path) -> None:
    columns = Columns(text="answer", context="question", role=Role.ASSISTANT)
    (item,) = source(tmp_path, {"question": "How?", "answer": "So."}, columns=columns).items()
    assert item.conversation is not None
    assert [(message.role, message.content) for message in item.conversation.messages] == [
        (Role.USER, "How?"),
        (Role.ASSISTANT, "So."),
    ]
    assert item.target is Target.RESPONSE


@pytest.mark.parametrize(("given_id", "kept"), [("a-1", "a-1"), (7, 7), (None, None)])
def test_ids_are_copied(tmp_path: Path, given_id: Any, kept: Any) -> None:
    (item,) = source(tmp_path, {"id": given_id, "text": "a"}, id_column="id").items()
    assert (item.id, item.problem) == (kept, None)


@pytest.mark.parametrize(
    "given_id", [1.5, True, [SECRET], "x" * (MAX_ID_CHARACTERS + 1), "two\nlines", "\ud800", 2**63]
)
def test_what_is_no_id_is_a_bad_row_that_does_not_repeat_it(tmp_path: Path, given_id: Any) -> None:
    (item,) = source(tmp_path, {"id": given_id, "text": "a"}, id_column="id").items()
    assert (item.id, item.conversation) == (None, None)
    assert item.problem is not None
    assert item.problem.field == "id"
    assert SECRET not in str(item)


@given(rows=st.integers(0, 30), skip=st.integers(0, 35), limit=st.none() | st.integers(1, 35), batch=st.integers(1, 9))
def test_chunks_are_the_rows_cut_up(
    tmp_path_factory: pytest.TempPathFactory, rows: int, skip: int, limit: int | None, batch: int
) -> None:
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)
    whole = Source(path, TEXT, limit=limit, batch=batch)
    chunks = list(whole.after(skip).chunks())
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(0 < len(chunk.items) <= batch for chunk in chunks)
    assert [item for chunk in chunks for item in chunk.items] == list(replace(whole, batch=1).items())[skip:]
    assert len(list(whole.items())) == (rows if limit is None else min(limit, rows))


@pytest.mark.parametrize(("name", "options"), [("limit", {"limit": 0}), ("batch", {"batch": 0})])
def test_counts_start_at_one(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}: expected at least 1"):
        source(tmp_path, **options)


def test_a_column_that_no_row_has_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,key\nhello,1\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="has no column 'id'"):
        list(Source(path, TEXT, id_column="id").items())
