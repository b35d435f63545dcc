"""Formats that nobody should be able to send: refused by name, or done within the bound; never slow, never quoted."""

from __future__ import annotations

import resource
import time
from random import Random
from typing import Any

import numpy as np
import pytest

from guard.errors import InvalidInputError
from guard.generation import ChoiceFormat, JsonFormat, OutputFormat, RegexFormat
from guard.structured.checks import MAX_PATTERN_BYTES, MAX_SCHEMA_BYTES, check_format
from guard.structured.reasons import reason

from .structured_texts import RandomWriter

SCHEMA, PATTERN, CHOICES = (
    f"response_format.{name}" for name in ("json_schema.schema", "regex.pattern", "choice.choices")
)
#: Seconds and bytes: far above what a machine under load needs for the bounded work (0.1 s to 0.5 s, some MB), and far
#: below what the unbounded work takes (50 s and 2 GB for the worst).
MAX_SECONDS, MAX_BYTES = 10.0, 300 << 20


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> RandomWriter:
    return RandomWriter(tmp_path_factory.mktemp("structured"))


def refusal(writer: RandomWriter, output_format: OutputFormat) -> tuple[str, str]:
    with pytest.raises(InvalidInputError) as caught:
        writer.compiler.constraint(output_format)
    return caught.value.field, caught.value.problem


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "zzz"}, "a type that JSON does not have"),
        ({"not": {"type": "string"}}, "not: not supported"),
        ({"if": {"const": "zzz"}, "then": {}}, "if, then: not supported"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems: not supported"),
        ({"type": "object", "required": "zzz"}, "a keyword's value has the wrong type"),
        ({"type": "object", "properties": ["zzz"]}, "a keyword's value has the wrong type"),
        ({"type": "array", "maxItems": "zzz"}, "a keyword's value has the wrong type"),
        ({"$ref": "https://zzz.example/schema"}, "a $ref that is not to a part of this schema"),
        ({"$ref": "#/definitions/zzz"}, "a $ref to a part that does not exist"),
        ({"$defs": {"zzz": {"$ref": "#/$defs/zzz"}}, "$ref": "#/$defs/zzz"}, "no text satisfies it"),
        ({"type": "string", "pattern": "(?=zzz)"}, "look-ahead, look-behind and word borders are not supported"),
        ({"type": "string", "pattern": "(zzz"}, "unclosed group"),
        ({"patternProperties": {"(zzz": {}}}, "unclosed group"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "no value satisfies it"),
        ({"enum": []}, "no value satisfies it"),
        ({"properties": {"zzz": False}, "required": ["zzz"], "type": "object"}, "no value satisfies it"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf with branches that may overlap"),
        ({"type": "string", "format": "zzz"}, "a format that is not supported"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance is not supported"),
        ({"type": "object", "minProperties": 2}, "minProperties above the number of required"),
        ({"const": {1, 2}}, "is not JSON"),
        ({"const": float("nan")}, "is not JSON"),
        ({"const": "\ud800"}, "is not JSON"),
        ({"const": "x" * MAX_SCHEMA_BYTES}, f"bytes, the limit is {MAX_SCHEMA_BYTES}"),
        ({"multipleOf": 999983}, "multipleOf: sum or common multiple of all is above 10000"),
        ({"allOf": [{"multipleOf": prime} for prime in (2, 3, 5, 7, 11, 13, 17, 19)]}, "multipleOf: "),
        ({"anyOf": [{"multipleOf": 9973} for _ in range(3)]}, "multipleOf: "),
        ({"patternProperties": {f"^{n}$": {} for n in range(65)}}, "65 patternProperties, the limit is 64"),
    ],
)
def test_bad_schemas_are_refused_without_a_word_of_theirs(
    writer: RandomWriter, schema: dict[str, Any], problem: str
) -> None:
    field, said = refusal(writer, JsonFormat(schema))
    assert (field, problem in said, "zzz" in said) == (SCHEMA, True, False), said


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(zzz", "unclosed group"),
        ("zzz)", "unopened group"),
        ("[zzz", "unclosed character class"),
        ("(?=zzz)x", "look-ahead, look-behind and word borders are not supported"),
        (r"\bzzz", "look-ahead, look-behind and word borders are not supported"),
        (r"(zzz)\1", "back references are not supported"),
        ("*zzz", "wrong use of a repetition"),
        ("zzz{2,1}", "wrong use of a repetition"),
        (r"\p{zzz}", "unknown Unicode property"),
        (r"\yzzz", "unknown escape sequence"),
        ("zzz\\", "unknown escape sequence"),
        ("[z-a]", "wrong range of characters"),
        ("", "expected 1 to 4096 bytes"),
        ("é" * (MAX_PATTERN_BYTES // 2 + 1), "expected 1 to 4096 bytes"),
        ("\udc00", "has a lone surrogate"),
        ("(" * 1000 + "zzz" + ")" * 1000, "not a regular expression in Rust's syntax"),
        ("((a{100}){100}){100}", "too complex"),
        ("(a{1000}){1000}", "too complex"),
        ("[^\\x{00}-\\x{10FFFF}]", "no text satisfies it"),
    ],
)
def test_bad_patterns_are_refused_without_a_word_of_theirs(writer: RandomWriter, pattern: str, problem: str) -> None:
    field, said = refusal(writer, RegexFormat(pattern))
    assert (field, problem in said, "zzz" in said) == (PATTERN, True, False), said


@pytest.mark.parametrize(
    ("choices", "field", "problem"),
    [
        ((), CHOICES, "expected 2 to 256"),
        (("one",), CHOICES, "expected 2 to 256"),
        (tuple(map(str, range(257))), CHOICES, "expected 2 to 256"),
        (("a", ""), f"{CHOICES}[1]", "expected 1 to 256 characters"),
        (("a" * 257, "b"), f"{CHOICES}[0]", "expected 1 to 256 characters"),
        (("a", "b", "a"), f"{CHOICES}[2]", "is there twice"),
        (("a", "\ud800"), f"{CHOICES}[1]", "has a lone surrogate, which is not valid Unicode"),
    ],
)
def test_bad_choices_are_refused(choices: tuple[str, ...], field: str, problem: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_format(ChoiceFormat(choices))
    assert (caught.value.field, caught.value.problem) == (field, problem)


def properties(count: int) -> dict[str, Any]:
    return {f"k{number}": {} for number in range(count)}


def strings(*patterns: str) -> JsonFormat:
    items = [{"type": "string", "pattern": pattern} for pattern in patterns]
    return JsonFormat({"type": "array", "minItems": len(items), "prefixItems": items})


def pairs(count: int) -> JsonFormat:
    return JsonFormat(
        {"allOf": [{"anyOf": [{"required": [f"{side}{n}"]} for side in "ab"]} for n in range(count)], "type": "object"}
    )


def nested(depth: int, around: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema} if around == "items" else {"properties": {"a": schema}}
    return schema


NASTY: dict[str, OutputFormat] = {
    "objects 100 deep": JsonFormat(nested(100, "properties")),
    "arrays 900 deep": JsonFormat(nested(900, "items")),
    "arrays deeper than Python": JsonFormat(nested(100_000, "items")),
    "a billion items": JsonFormat({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}),
    "at least a hundred million items": JsonFormat({"type": "array", "minItems": 10**8}),
    "a billion characters": JsonFormat({"type": "string", "minLength": 10**7, "maxLength": 10**9}),
    "2000 properties": JsonFormat({"type": "object", "properties": properties(2000)}),
    "1300 required": JsonFormat({"properties": properties(1300), "required": list(properties(1300))}),
    "3000 enumerated": JsonFormat({"enum": [f"{n}" for n in range(3000)]}),
    "2000 enumerated objects": JsonFormat({"enum": [{"a": n} for n in range(2000)]}),
    "references that double": JsonFormat(
        {
            "$defs": {
                "d99": {"type": "null"},
                **{
                    f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"$ref": f"#/$defs/d{n + 1}"}}}
                    for n in range(99)
                },
            },
            "$ref": "#/$defs/d0",
        }
    ),
    "9 pairs to choose from": pairs(9),
    "20 pairs to choose from": pairs(20),
    "patterns that all hold": JsonFormat({"allOf": [{"pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(8, 16)]}),
    "300 hard patterns": strings(*(f"(a|b)*a(a|b){{{n}}}c.*d" for n in range(300))),
    "60 long patterns": strings(*(f"(a{{1000}}){{{n}}}" for n in range(2, 60))),
    "64 pattern properties": JsonFormat({"patternProperties": {f"^.*a{n}b*$": {} for n in range(64)}}),
    "300 ranges": JsonFormat(
        {"prefixItems": [{"type": "number", "minimum": n + 0.12345678, "maximum": 1e15 + n} for n in range(300)]}
    ),
    "the largest multiple": JsonFormat({"type": "integer", "multipleOf": 9973, "minimum": 7, "maximum": 10**12}),
    "multiples of all scales": JsonFormat({"allOf": [{"multipleOf": n} for n in (1024, 10**12, 1e-7)]}),
    "catastrophic for backtracking": RegexFormat("(x+x+)+y"),
    "nothing but stars": RegexFormat("(?:(?:a*)*)*" * 300),
    "optional and needed": RegexFormat("(a?){30}a{30}"),
    "exponential automaton": RegexFormat("(a|b)*a(a|b){20}"),
    "exponential automaton of dots": RegexFormat("(.*[a-z]){3}.{500}(.*[0-9]){50}"),
    "a long memory": RegexFormat(".*a.{1000}"),
    "repetitions within repetitions": RegexFormat("(" * 10 + "a" + "{0,9})" * 10),
    "65535 times": RegexFormat("a{65535}"),
    "a million digits": RegexFormat(r"\d{1000000}"),
    "10000 letters of any language": RegexFormat(r"\p{L}{1,10000}"),
    "400 words in any order": RegexFormat("(" + "|".join(f"word{n}" for n in range(400)) + ")*"),
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_formats_end_in_bounded_time_and_memory(writer: RandomWriter, name: str) -> None:
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    random = Random(0)
    try:
        constraint = writer.compiler.constraint(NASTY[name])
        for _ in range(100):
            tokens = set(np.flatnonzero(constraint.allowed()).tolist()) - set(writer.stop_ids)
            if not tokens:
                break
            constraint.accept(random.choice(sorted(tokens)))
    except InvalidInputError as error:
        assert error.field in (SCHEMA, PATTERN)
        assert error.problem in ("too complex", "nested too deeply", "no text satisfies it"), error.problem
    assert time.process_time() - started < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_BYTES >> 10


def test_a_grammar_that_becomes_too_complex_while_writing_is_the_callers_error(writer: RandomWriter) -> None:
    constraint = writer.compiler.constraint(NASTY["exponential automaton of dots"])
    random = Random(0)
    with pytest.raises(InvalidInputError, match=r"^response_format\.regex\.pattern: too complex$"):
        for _ in range(2000):
            constraint.accept(random.choice(np.flatnonzero(constraint.allowed()).tolist()))


def test_unknown_errors_say_nothing() -> None:
    assert reason("something new about zzz") == "cannot be enforced"
    assert reason('Unimplemented keys: ["zzz"]') == "a keyword that is used: not supported"
