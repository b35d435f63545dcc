"""Labelled rows, and the texts that were written for this project."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from guard.conversation import Role, Target
from guard.errors import InvalidInputError
from guard.taxonomy import HAZARDS
from training.data import HERE, REFUSALS, capped, hand_written_rows, read_rows, refusal_rows

PROMPT = {"messages": [{"role": "user", "content": "How do ships float?"}], "label": "safe"}
RESPONSE = {
    "messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "They are vermin."}],
    "label": "unsafe",
    "categories": ["S10"],
    "lang": "en",
    "source": "mine",
    "quality": "weak",
}


def test_rows_are_read_plain_and_compressed(tmp_path: Path) -> None:
    text = "".join(json.dumps(value) + "\n" for value in (PROMPT, RESPONSE))
    plain, packed = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    first, second = read_rows(plain)
    assert read_rows(packed) == [first, second]
    assert (first.target, first.unsafe, first.categories, first.weak) == (Target.PROMPT, False, (), False)
    assert (second.target, second.unsafe, second.categories, second.weak) == (Target.RESPONSE, True, ("S10",), True)


def test_line_separators_inside_a_text_do_not_split_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    value = {**PROMPT, "messages": [{"role": "user", "content": "one\u2028two\u0085three"}]}
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(path)[0].conversation.messages[0].content == "one\u2028two\u0085three"


@pytest.mark.parametrize(
    "line",
    [
        "secret text, no JSON",
        "[]",
        json.dumps({"label": "safe"}),
        json.dumps({**PROMPT, "label": "secret text"}),
        json.dumps({**PROMPT, "messages": [{"role": "system", "content": "secret text"}]}),
        json.dumps({**PROMPT, "messages": [{"role": "user", "content": "  "}]}),
    ],
)
def test_a_broken_line_is_named_without_its_text(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PROMPT) + "\n" + line + "\n")
    with pytest.raises(InvalidInputError, match=r"^rows\.jsonl:2: ") as caught:
        read_rows(path)
    assert "secret" not in str(caught.value)


def test_hand_written_rows_are_distinct_and_well_formed() -> None:
    rows = hand_written_rows()
    conversations = [row.conversation for row in rows]
    assert len(set(conversations)) == len(conversations)
    assert {(row.target, row.unsafe) for row in rows} == {(target, unsafe) for target in Target for unsafe in (0, 1)}
    for row in rows:
        assert bool(row.categories) == row.unsafe
        assert set(row.categories) <= set(HAZARDS) - {"S14"}
    unsafe_languages = {row.lang for row in rows if row.unsafe}
    assert unsafe_languages == {row.lang for row in rows if not row.unsafe}, "no language may look unsafe by itself"


def test_the_probes_were_not_trained_on() -> None:
    trained = {row.conversation.messages[-1].content.casefold() for row in hand_written_rows()}
    trained |= {line.casefold() for line in REFUSALS.read_text(encoding="utf-8").splitlines()}
    probes = read_rows(HERE / "probes.jsonl")
    assert len(probes) == 40
    assert {row.lang for row in probes if not row.unsafe} >= {"en", "fr", "de", "es", "hi"}
    assert not trained & {row.conversation.messages[-1].content.casefold() for row in probes}


def test_refusals_follow_requests_and_are_safe(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    asks = [{**PROMPT, "label": "unsafe", "messages": [{"role": "user", "content": f"ask {n}"}]} for n in range(9)]
    post = {**asks[0], "source": "hatecheck", "messages": [{"role": "user", "content": "a post"}]}
    path.write_text("".join(json.dumps(value) + "\n" for value in [*asks, post, PROMPT, RESPONSE]))
    made = refusal_rows(read_rows(path), 50, random.Random(0))
    assert len(made) == 9
    for row in made:
        question, answer = row.conversation.messages
        assert question.content.startswith("ask ")
        assert (answer.role, row.target, row.unsafe) == (Role.ASSISTANT, Target.RESPONSE, False)


def test_caps_take_the_first_rows_of_a_source(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**PROMPT, "source": source}) + "\n" for source in "abaabb"))
    assert [row.source for row in capped(read_rows(path), {"a": 1})] == ["a", "b", "b", "b"]
