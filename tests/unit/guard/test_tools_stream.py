from __future__ import annotations

import json
import re
import string
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guard.errors import ModelOutputError
from guard.generation import Tool, ToolChoice, ToolMode
from guard.tools.stream import MAX_CALL_CHARACTERS, ToolReader

ANY = {"type": "object"}
TOOLS = (
    Tool("get_weather", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
    Tool("find-all", "", ANY),
)
AUTO = ToolChoice()
CALL = '{"name": "find-all", "parameters": {"a": [1, {"b": "}\\"\\u00e9"}]}}'
PYTHON = "[get_weather(city='It\\'s \"Köln\"'), find-all(a=-1.5, b=[None, {'c': true}])]"


def read(pieces: list[str], choice: ToolChoice = AUTO) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolReader(TOOLS, choice)
    shown = "".join(reader.feed(piece) for piece in pieces)
    left, calls = reader.finish()
    return shown + left, [(call.name, call.arguments) for call in calls]


#: Pieces that calls are made of, to be put together well or badly.
PARTS = st.one_of(
    st.sampled_from([CALL, PYTHON, f"[{CALL}, {CALL}]", '{"name": "other", "parameters": {}}', '{"answer": 1}', "[1]"]),
    st.sampled_from(
        ["```", "```json\n", "<tool_call>", "</tool_call>", "<|python_tag|>", "<", "`", "text", "find-all("]
    ),
    st.sampled_from(['{"name": "find-all"}', '{"name": "get_weather"', '{"n\\u0061me": "find-all"}', "a=1", ")"]),
    st.sampled_from(list(";,\n []{}\"\\'")),
)
ANSWERS = st.one_of(st.lists(PARTS, max_size=8).map("".join), st.text(max_size=40))


@given(ANSWERS, st.lists(st.integers(0, 500), max_size=12))
@example(CALL, [1])
@example(f"```json\n{PYTHON}\n```", [3])
@example(f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [5, 90])
def test_how_an_answer_is_cut_changes_nothing(answer: str, places: list[int]) -> None:
    whole = read([answer])
    cuts = [0, *sorted(min(place, len(answer)) for place in places), len(answer)]
    assert read([answer[start:end] for start, end in pairwise(cuts)]) == whole
    assert read(list(answer)) == whole
    text, calls = whole
    assert text == ("" if calls else answer)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUES), st.booleans())
def test_any_arguments_come_back_from_json(arguments: dict[str, object], ascii_only: bool) -> None:
    text = json.dumps({"name": "find-all", "parameters": arguments}, ensure_ascii=ascii_only)
    shown, [(name, found)] = read(list(text))
    assert (shown, name, json.loads(found)) == ("", "find-all", arguments)


@example({"_000x": "(R", "_001x": "vitamin r", "_002x": {"R": "\\d"}})
@given(st.dictionaries(st.from_regex("[a-z_][a-z0-9_]{3,8}x", fullmatch=True), VALUES))
def test_any_arguments_come_back_from_python(arguments: dict[str, object]) -> None:
    text = f"[find-all({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"
    shown, [(name, found)] = read(list(text))
    assert (shown, name, json.loads(found)) == ("", "find-all", arguments)


def test_text_is_shown_as_soon_as_it_is_none_of_a_call() -> None:
    for answer, held in (
        ("Hello", 0),
        ("  Hello", 2),
        ('{"city": "Rome"}', len('{"')),
        ('{"name": "Rome"}', len('{"name": "Rome"')),
        ('{"type": "find"', len('{"type": "find"') + 1),
        ("[1, 2]", 1),
        ("[note] that", len("[")),
        ("[find-all] that", len("[find-all")),
        ("```python\nprint(1)", len("```python\n")),
        ("<b>", 1),
        (f"{CALL} is how", len(CALL) + 1),
        (f"```\n{CALL}\n``` is how", len(f"```\n{CALL}\n``` ")),
    ):
        reader = ToolReader(TOOLS, AUTO)
        waiting = [reader.feed(character) for character in answer]
        first = next(
            (index for index, piece in enumerate(waiting) if piece), len(answer) + 1 - bool(held > len(answer))
        )
        assert first == min(held, len(answer)), answer
        assert reader.feed(" more") == (" more" if held < len(answer) else "")


def test_long_answers_are_text() -> None:
    call = json.dumps({"name": "find-all", "parameters": {"a": "x" * MAX_CALL_CHARACTERS}})
    assert read([call]) == (call, [])
    calls = ";".join(['{"name": "find-all"}'] * 65)
    assert read([calls]) == (calls, [])
    assert len(read([calls[: calls.rindex(";")]])[1]) == 64


@pytest.mark.parametrize(
    "bomb", ["-" * 60_000 + "1", "1" + "+1" * 25_000, "a" + ".a" * 25_000, "not " * 15_000 + "1", "1" + "**1" * 20_000]
)
def test_python_that_is_hard_to_parse_is_text(bomb: str) -> None:
    answer = f"[find-all(a={bomb})]"
    assert read([answer]) == (answer, [])


def test_without_tools_nothing_is_held_back() -> None:
    for reader in (ToolReader((), AUTO), ToolReader(TOOLS, ToolChoice(ToolMode.NONE))):
        assert reader.feed(CALL) == CALL
        assert reader.finish() == ("", ())


@pytest.mark.parametrize("choice", [ToolChoice(ToolMode.REQUIRED), ToolChoice(name="find-all")])
def test_a_call_that_was_asked_for_comes_or_is_an_error(choice: ToolChoice) -> None:
    assert read(list(CALL), choice) == ("", [("find-all", '{"a":[1,{"b":"}\\"é"}]}')])
    with pytest.raises(ModelOutputError):
        ToolReader(TOOLS, choice).feed("Hello")
    cut = ToolReader(TOOLS, choice)
    assert cut.feed(CALL[:-1]) == ""
    assert cut.finish(complete=False) == (CALL[:-1], ())
    for answer in ("", CALL[:-1]):
        reader = ToolReader(TOOLS, choice)
        reader.feed(answer)
        with pytest.raises(ModelOutputError) as caught:
            reader.finish()
        assert "find-all" not in str(caught.value)


def test_another_tool_than_the_named_one_is_an_error() -> None:
    reader = ToolReader(TOOLS, ToolChoice(name="get_weather"))
    with pytest.raises(ModelOutputError):
        reader.feed(CALL)


def test_ids_differ() -> None:
    reader = ToolReader(TOOLS, AUTO)
    reader.feed(f"{CALL};{CALL}")
    ids = {call.id for call in reader.finish()[1]}
    assert len(ids) == 2
    assert all(re.fullmatch(f"call_[{string.hexdigits}]{{16}}", ident) for ident in ids)
