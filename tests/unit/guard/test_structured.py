from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from guard.errors import BundleError, UnsupportedError
from guard.generation import ChoiceFormat, JsonFormat, OutputFormat, RegexFormat
from guard.structured import FormatCompiler
from guard.structured.compiler import CACHED_GRAMMARS

from .structured_texts import VOCAB_SIZE, RandomWriter, case_format

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data" / "structured_cases.jsonl").read_text("utf-8").splitlines()
]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> RandomWriter:
    return RandomWriter(tmp_path_factory.mktemp("structured"))


def test_there_are_enough_cases() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(writer: RandomWriter, case: dict[str, Any]) -> None:
    output_format = case_format(case)
    for text in case["accepts"]:
        assert writer.takes(output_format, text), text
    for text in case["refuses"]:
        assert not writer.takes(output_format, text), text
    for seed in range(3):
        check(output_format, writer.write(output_format, seed))


def check(output_format: OutputFormat, text: str) -> None:
    match output_format:
        case JsonFormat(schema):
            value = json.loads(text)
            if "multipleOf" not in json.dumps(schema):  # jsonschema divides floats: 9.99 is no multiple of 0.01
                Draft202012Validator(schema).validate(value)
            assert not re.search(r"\s\s", re.sub(r'"(?:[^"\\]|\\.)*"', '""', text))
        case RegexFormat(pattern):
            if r"\p" not in pattern:  # Python has no Unicode properties
                assert re.fullmatch(pattern, text, re.ASCII)
        case ChoiceFormat(choices):
            assert text in choices


def test_a_text_may_end_exactly_where_the_format_is_complete(writer: RandomWriter) -> None:
    constraint = writer.compiler.constraint(ChoiceFormat(("a", "abc")))
    stops = []
    for letter in "abc":
        stops.append(constraint.allowed()[writer.stop_ids].tolist())
        constraint.accept(writer.tokenizer.encode_text(letter)[0])
    assert stops == [[False, False], [True, True], [False, False]]
    complete = constraint.allowed()
    assert np.flatnonzero(complete).tolist() == sorted(writer.stop_ids)


def test_masks_have_the_vocabulary_of_the_logits_and_no_control_tokens(writer: RandomWriter) -> None:
    mask = writer.compiler.constraint(RegexFormat("(?s:.)*")).allowed()
    assert mask.shape == (VOCAB_SIZE,)
    assert mask.dtype == np.bool_
    assert not mask[writer.vocabulary :].any()
    assert not mask[sorted(writer.control_ids - set(writer.stop_ids))].any()
    assert mask.sum() > writer.vocabulary - 10 - 128  # all tokens but those that begin inside a character


def test_control_tokens_can_be_spelled_but_not_used(writer: RandomWriter) -> None:
    assert writer.takes(RegexFormat(r"<\|im_end\|>"), "<|im_end|>")


def test_each_text_has_its_own_state(writer: RandomWriter) -> None:
    first, second = (writer.compiler.constraint(RegexFormat("ab")) for _ in range(2))
    first.accept(writer.tokenizer.encode_text("a")[0])
    second.accept(writer.tokenizer.encode_text("a")[0])
    assert (first.allowed() == second.allowed()).all()


def test_a_token_that_was_not_allowed_is_not_accepted(writer: RandomWriter) -> None:
    with pytest.raises(ValueError, match="was not allowed"):
        writer.compiler.constraint(RegexFormat("ab")).accept(writer.tokenizer.encode_text("z")[0])


def test_compiled_grammars_are_kept(writer: RandomWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_one = writer.compiler._compile

    def counted(field: str, output_format: OutputFormat, text: str) -> Any:
        compiled.append(text)
        return compile_one(field, output_format, text)

    monkeypatch.setattr(writer.compiler, "_compile", counted)
    formats = [RegexFormat(f"kept {number}") for number in range(CACHED_GRAMMARS)]
    for each in [*formats, formats[0], RegexFormat("one more"), formats[0], formats[1]]:
        writer.compiler.constraint(each)
    assert compiled == [f"regex:kept {number}" for number in range(CACHED_GRAMMARS)] + [
        "regex:one more",
        "regex:kept 1",
    ]


def test_a_schema_and_a_pattern_of_the_same_text_are_two_formats(writer: RandomWriter) -> None:
    assert writer.takes(JsonFormat({}), "[]")
    assert writer.takes(RegexFormat("[{]}"), "{}")
    assert not writer.takes(RegexFormat("[{]}"), "[]")


def test_without_the_extra_the_error_names_it(writer: RandomWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UnsupportedError, match=r"response_format.*guardlet\[structured\]"):
        writer.compiler.constraint(RegexFormat("never compiled before"))


def test_a_tokenizer_that_does_not_fit_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"^tokenizer\.json: cannot be used"):
        FormatCompiler(tmp_path / "tokenizer.json", 512, [1]).constraint(RegexFormat("a"))
