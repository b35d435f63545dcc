from __future__ import annotations

import csv
import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.conversation import Role, Target
from guard.errors import InvalidInputError, UnsupportedError
from guard.evaluation.rows import Columns, read_data, sample

from .helpers import prompts, row, write_jsonl

SECRET = "zebra-umbrella"
GOOD = {"messages": [{"role": "user", "content": "Hello"}], "label": "safe"}


def test_the_default_columns(tmp_path: Path) -> None:
    value = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Take this."}],
        "target": "response",
        "label": "unsafe",
        "categories": ["S1", "S10"],
        "lang": "en",
        "source": "made",
    }
    (read,) = read_data(write_jsonl(tmp_path / "a.jsonl", [value])).rows
    assert (read.target, read.unsafe, read.categories) == (Target.RESPONSE, True, ("S1", "S10"))
    assert (read.lang, read.source, read.number) == ("en", "made", 1)
    assert [message.content for message in read.conversation.messages] == ["Hi", "Take this."]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"messages": None}, "messages: missing"),
        ({"messages": SECRET}, "messages: expected JSON"),
        ({"messages": [SECRET]}, "messages[0].role: expected one of"),
        ({"messages": [{"role": SECRET, "content": SECRET}]}, "messages[0].role: expected one of"),
        ({"messages": [{"role": "user", "content": [SECRET]}]}, "messages[0].content: expected a string"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content: is empty"),
        ({"messages": [{"role": "system", "content": SECRET}]}, "messages[0].role: a moderated conversation"),
        ({"target": "response"}, "messages[0].role: the response is judged"),
        ({"target": SECRET}, "target: expected one of prompt, response"),
        ({"label": SECRET}, "label: expected one of 0, 1, false, safe, true, unsafe"),
        ({"label": 0.5}, "label: expected one of"),
        ({"label": None}, "label: missing"),
        ({"categories": SECRET + "!"}, "categories: expected category codes"),
        ({"categories": 4}, "categories: expected category codes"),
        ({"lang": SECRET * 10}, "lang: expected a name"),
        ({"source": "a\nb"}, "source: expected a name"),
        ({"source": [SECRET]}, "source: expected a name"),
    ],
)
def test_a_bad_row_is_reported_with_its_line_and_without_its_text(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    data = read_data(write_jsonl(tmp_path / "a.jsonl", [GOOD, {**GOOD, **change}, GOOD]))
    assert [each.number for each in data.rows] == [1, 3]
    ((number, said),) = [(each.number, each.problem) for each in data.bad]
    assert number == 2
    assert said.startswith(problem)
    assert SECRET not in said


def test_lines_that_are_not_json_and_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", b"{" + SECRET.encode(), b"[1]", b"\xff", b"  "]
    path.write_bytes(b"\n".join(lines))
    data = read_data(path)
    assert [each.number for each in data.rows] == [1]
    assert [(each.number, each.problem) for each in data.bad] == [
        (3, "row: not a line of JSON in UTF-8"),
        (4, "row: not a JSON object"),
        (5, "row: not a line of JSON in UTF-8"),
    ]


@given(st.lists(st.sampled_from(["good", "bad", "broken", "blank"]), min_size=1, max_size=20))
def test_no_line_is_lost(tmp_path_factory: pytest.TempPathFactory, kinds: list[str]) -> None:
    texts = {"good": json.dumps(GOOD), "bad": '{"label": 3}', "broken": "{", "blank": ""}
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_text("\n".join(texts[kind] for kind in ["good", *kinds]), encoding="utf-8")
    data = read_data(path)
    numbers = sorted([each.number for each in data.rows] + [each.number for each in data.bad])
    assert numbers == [number for number, kind in enumerate(["good", *kinds], start=1) if kind != "blank"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="none of 1 rows can be used; row 1: messages: missing"):
        read_data(write_jsonl(tmp_path / "a.jsonl", [{}]))


def test_gzip_and_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip.compress("".join(json.dumps(value) + "\n" for value in prompts(50)).encode())
    path.write_bytes(data)
    assert len(read_data(path).rows) == 50
    for damaged in (data[: len(data) // 2], b"no gzip", data[:30] + b"\0" * 20 + data[50:]):
        path.write_bytes(damaged)
        with pytest.raises(InvalidInputError, match="gzip data is damaged"):
            read_data(path)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"expected a \.jsonl"):
        read_data(path)


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_with_declared_columns(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "a.csv",
        [["question", "answer", "toxic", "kind"], ["Say\nit", "No, thanks", "0", ""], ["Do it", "Yes", "1", "S2; S7"]],
    )
    columns = Columns(text="answer", context="question", role=Role.ASSISTANT, label="toxic", categories="kind")
    first, second = read_data(path, columns).rows
    assert [message.content for message in first.conversation.messages] == ["Say\nit", "No, thanks"]
    assert (first.unsafe, first.number, first.target) == (False, 2, Target.RESPONSE)
    assert (second.unsafe, second.number, second.categories) == (True, 4, ("S2", "S7"))


def test_csv_with_messages_as_json(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [["messages", "label"], [json.dumps(GOOD["messages"]), "unsafe"]])
    assert read_data(path).rows[0].unsafe is True


def test_csv_rows_of_another_length_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\nhello,safe\n{SECRET}\n{SECRET},safe,more\nbye,safe\n", encoding="utf-8")
    data = read_data(path, Columns(text="text"))
    assert [each.number for each in data.rows] == [2, 5]
    assert [(each.number, each.problem) for each in data.bad] == [
        (3, "row: 1 cells, the header has 2"),
        (4, "row: 3 cells, the header has 2"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{SECRET},{SECRET}\n".encode(), "has no column 'text'"),
        (b"text,label,text\na,safe,b\n", "two columns have the same name"),
        (
            b"text,label\na,safe\n" + b"a" * (17 << 20) + b",safe\n",
            r"line 2 .* as CSV \(longer than 16 MiB",
        ),
        (b'text,label\na,safe\n"' + b"aaaaaaa\n" * (3 << 20), r"cannot be read as CSV \(field larger than field limit"),
        (f'text,label\n"{SECRET}"x,safe\n'.encode(), "line 2 cannot be read as CSV"),
    ],
)
def test_a_broken_csv_is_refused_without_quoting_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_data(path, Columns(text="text"))
    assert SECRET not in str(caught.value)


def test_csv_rows_that_are_not_utf_8_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\nh\xc3\xa9,safe\n\xff,safe\nbye,safe\n")
    data = read_data(path, Columns(text="text"))
    assert [each.conversation.messages[0].content for each in data.rows] == ["hé", "bye"]
    assert [(each.number, each.problem) for each in data.bad] == [(3, "row: not UTF-8")]


def test_a_line_that_never_ends_is_a_bad_row_and_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b"\n" + b'"')
        for _ in range(100):
            file.write(b"a" * (1 << 20))
        file.write(b'"\n' + json.dumps(GOOD).encode())
    tracemalloc.start()
    data = read_data(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [each.number for each in data.rows] == [1, 3]
    assert [(each.number, each.problem) for each in data.bad] == [(2, "row: longer than 16 MiB")]
    assert peak < 4 * (16 << 20)


def test_a_cell_may_be_a_long_document(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [["text", "label"], ["word " * 100_000, "safe"]])
    assert len(read_data(path, Columns(text="text")).rows) == 1


def test_tabs(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\na, b\t1\n", encoding="utf-8")
    (read,) = read_data(path, Columns(text="text")).rows
    assert read.conversation.messages[0].content == "a, b"


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    values = [*prompts(3), {**prompts(1)[0], "label": "?"}]
    parquet.write_table(arrow.Table.from_pylist(values), path)
    data = read_data(path)
    assert [each.number for each in data.rows] == [1, 2, 3]
    assert [each.key for each in data.rows] == [
        each.key for each in read_data(write_jsonl(tmp_path / "a.jsonl", prompts(3))).rows
    ]
    assert [each.number for each in data.bad] == [4]
    with pytest.raises(InvalidInputError, match="has no column 'words'"):
        read_data(path, Columns(text="words"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InvalidInputError, match="not a readable Parquet file"):
        read_data(path)


def test_parquet_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"pip install 'guardlet\[eval\]'"):
        read_data(path)


def test_labels_of_many_forms(tmp_path: Path) -> None:
    labels = ["UNSAFE", True, 1, 1.0, "1", " true ", "Safe", False, 0, 0.0, "0"]
    data = read_data(write_jsonl(tmp_path / "a.jsonl", [{**GOOD, "label": label} for label in labels]))
    assert [each.unsafe for each in data.rows] == [True] * 6 + [False] * 5


def test_a_label_cannot_mean_both() -> None:
    with pytest.raises(InvalidInputError, match="both safe and unsafe"):
        Columns(unsafe_labels=frozenset({"x"}), safe_labels=frozenset({"x"}))


def test_the_key_is_of_what_is_judged() -> None:
    assert row("a").key == row("a", unsafe=True, lang="de", number=9).key
    assert row("a").key != row("b").key


def test_a_sample_is_repeatable_in_order_and_whole_when_small() -> None:
    rows = tuple(row(str(index), number=index) for index in range(100))
    chosen = sample(rows, 10, seed=1)
    assert chosen == sample(rows, 10, seed=1) != sample(rows, 10, seed=2)
    assert [each.number for each in chosen] == sorted({each.number for each in chosen})
    assert sample(rows, 1000, seed=1) == rows
    with pytest.raises(InvalidInputError, match="limit"):
        sample(rows, 0, seed=1)
