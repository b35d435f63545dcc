"""Whatever the schema and whatever the logits: the text parses and validates."""

from __future__ import annotations

import json
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from guard.generation import ChoiceFormat, JsonFormat, RegexFormat

from .structured_texts import RandomWriter

SEEDS = st.integers(0, 2**32 - 1)
SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=6)
PATTERNS = st.sampled_from(
    ["^[a-z]{1,8}$", "^[A-Z]{2}-[0-9]{1,4}$", "^a{0,3}b+$", "^(yes|no)( please)?$", "^.{2,5}$", "^x.{0,6}y$"]
)


@cache
def writer() -> RandomWriter:
    return RandomWriter(Path(tempfile.mkdtemp()))


def bounds(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """None, one or both of two keywords, in order."""
    pairs = st.tuples(values, values).map(sorted)
    return st.tuples(pairs, st.booleans(), st.booleans()).map(
        lambda drawn: ({low: drawn[0][0]} if drawn[1] else {}) | ({high: drawn[0][1]} if drawn[2] else {})
    )


def typed(name: str, *keywords: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*keywords).map(lambda parts: {"type": name} | {key: part[key] for part in parts for key in part})


SCALARS = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}]),
    typed("integer", bounds("minimum", "maximum", st.integers(-1000, 1000))),
    typed("number", bounds("minimum", "maximum", st.decimals(-100, 100, places=2).map(float))),
    typed("string", bounds("minLength", "maxLength", st.integers(0, 12))),
    PATTERNS.map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.lists(st.one_of(KEYS, st.integers(-9, 9), st.booleans(), st.none()), min_size=1, max_size=5).map(
        lambda values: {"enum": values}
    ),
)


def arrays(items: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return typed(
        "array", items.map(lambda schema: {"items": schema}), bounds("minItems", "maxItems", st.integers(0, 3))
    )


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(KEYS, values, max_size=4))
    required = [key for key in properties if draw(st.booleans())]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": draw(st.sampled_from([False, {"type": "boolean"}])),
    }


def grown(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        arrays(children),
        objects(children),
        st.lists(children, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas}),
        st.just({"$ref": "#/$defs/shared"}),
    )


SCHEMAS = st.tuples(st.recursive(SCALARS, grown, max_leaves=8), st.one_of(SCALARS, objects(SCALARS))).map(
    lambda drawn: {"$defs": {"shared": drawn[1]}} | drawn[0]
)


@given(SCHEMAS, SEEDS)
@SLOW
def test_json_always_parses_and_validates(schema: dict[str, Any], seed: int) -> None:
    value = json.loads(writer().write(JsonFormat(schema), seed))
    Draft202012Validator(schema).validate(value)


REGEX_PARTS = st.one_of(
    st.text("abc ,.", min_size=1, max_size=4).map(re.escape),
    st.sampled_from(["[a-f]{2,4}", r"\d+", "[^x]", "(yes|no)?", r"\w{1,5}", "é*", "(ab|cd){1,3}"]),
)


@given(st.lists(REGEX_PARTS, min_size=1, max_size=6).map("".join), SEEDS)
@SLOW
def test_a_pattern_always_matches(pattern: str, seed: int) -> None:
    assert re.fullmatch(pattern, writer().write(RegexFormat(pattern), seed), re.ASCII)


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=2, max_size=8, unique=True), SEEDS
)
@SLOW
def test_a_choice_is_always_one_of_them(choices: list[str], seed: int) -> None:
    assert writer().write(ChoiceFormat(tuple(choices)), seed) in choices
