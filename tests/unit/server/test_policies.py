"""The file of policies, and that its published schema says the same as its reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from guard.errors import InvalidInputError, UnsupportedError
from guard.phrases import MAX_PHRASE_CHARACTERS, MAX_PHRASES, Phrase, PhraseList
from guard.policies import PolicyBook
from guard.policy import (
    MAX_CUSTOM_CATEGORIES,
    MAX_DESCRIPTION_CHARACTERS,
    MAX_NAME_CHARACTERS,
    CustomCategory,
    Policy,
    PolicyAction,
)
from server import policies, strict_yaml
from server.errors import SettingsError
from server.policies import check_policies, load_policies, read_policies

SCHEMA = json.loads((Path(policies.__file__).parent / "policies.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
COMPLETE = """
default: standard
callers: {shop: strict, "42": default}
policies:
  strict:
    extends: standard
    threshold: 1
    category_thresholds: {S1: 0.3}
    action: shadow
    allow: [good morning]
  standard:
    threshold: 0.4
    excluded_categories: [S6, S8]
    custom_categories:
      - {code: S3, name: Rudeness, description: Being rude.}
      - {code: S4, name: Spam}
    deny: [first, {phrase: project zeta, name: zeta}]
"""


def test_a_complete_file() -> None:
    standard = Policy(
        0.4,
        excluded_categories=frozenset({"S6", "S8"}),
        custom_categories=(CustomCategory("S3", "Rudeness", "Being rude."), CustomCategory("S4", "Spam")),
        deny=PhraseList((Phrase("first"), Phrase("project zeta", "zeta"))),
    )
    strict = Policy(
        1.0,
        {"S1": 0.3},
        standard.excluded_categories,
        standard.custom_categories,
        PolicyAction.SHADOW,
        standard.deny,
        PhraseList((Phrase("good morning"),)),
    )
    found = {"default": Policy(), "standard": standard, "strict": strict}
    assert read_policies(COMPLETE) == PolicyBook(found, "standard", {"shop": "strict", "42": "default"})
    VALIDATOR.validate(yaml.safe_load(COMPLETE))


@pytest.mark.parametrize("text", ["", "# nothing", "policies: {}", "{}"])
def test_an_empty_file_has_the_built_in_policy(text: str) -> None:
    assert read_policies(text) == PolicyBook()


def policy(**fields: Any) -> dict[str, Any]:
    return {"policies": {"p": fields}}


def phrases(*entries: Any) -> dict[str, Any]:
    return policy(deny=list(entries))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "the file"),
        ({"polices": {}}, "polices"),
        ({7: 1}, "7"),
        ({"policies": []}, "policies"),
        ({"policies": None}, "policies"),
        ({"policies": {"a b": {}}}, "policies.a b"),
        ({"policies": {"p": None}}, "policies.p"),
        ({"default": 7}, "default"),
        ({"callers": {"shop": ["default"]}}, "callers.shop"),
        (policy(treshold=0.5), "policies.p.treshold"),
        (policy(extends=1), "policies.p.extends"),
        (policy(threshold=0), "policies.p.threshold"),
        (policy(threshold=1.5), "policies.p.threshold"),
        (policy(threshold=True), "policies.p.threshold"),
        (policy(threshold="0.5"), "policies.p.threshold"),
        (policy(threshold=None), "policies.p.threshold"),
        (policy(category_thresholds={"X": 0.5}), "policies.p.category_thresholds"),
        (policy(category_thresholds={"S1": 2}), "policies.p.category_thresholds['S1']"),
        (policy(category_thresholds={"S1": "x"}), "policies.p.category_thresholds.S1"),
        (policy(excluded_categories="S1"), "policies.p.excluded_categories"),
        (policy(excluded_categories=["S1", "S0"]), "policies.p.excluded_categories[1]"),
        (policy(custom_categories=[{"code": "S1"}]), "policies.p.custom_categories[0].name"),
        (policy(custom_categories=[{"code": "S1", "name": " "}]), "policies.p.custom_categories[0].name"),
        (policy(custom_categories=[{"code": "S1", "name": "a<b"}]), "policies.p.custom_categories[0].name"),
        (
            policy(custom_categories=[{"code": "S1", "name": "n" * (MAX_NAME_CHARACTERS + 1)}]),
            "policies.p.custom_categories[0].name",
        ),
        (
            policy(custom_categories=[{"code": "S1", "name": "n", "description": "\n"}]),
            "policies.p.custom_categories[0].description",
        ),
        (
            policy(
                custom_categories=[{"code": "S1", "name": "n", "description": "d" * (MAX_DESCRIPTION_CHARACTERS + 1)}]
            ),
            "policies.p.custom_categories[0].description",
        ),
        (policy(custom_categories=[{"code": "S1", "name": "n", "more": "x"}]), "policies.p.custom_categories[0].more"),
        (
            policy(custom_categories=[{"code": f"S{n + 1}", "name": "n"} for n in range(MAX_CUSTOM_CATEGORIES + 1)]),
            "policies.p.custom_categories",
        ),
        (policy(action="warn"), "policies.p.action"),
        (policy(action=True), "policies.p.action"),
        (phrases(" "), "policies.p.deny[0].phrase"),
        (phrases("x", "y" * (MAX_PHRASE_CHARACTERS + 1)), "policies.p.deny[1].phrase"),
        (phrases(False), "policies.p.deny[0]"),
        (phrases({"name": "n"}), "policies.p.deny[0].phrase"),
        (phrases({"phrase": "x", "name": "7"}), "policies.p.deny[0].name"),
        (phrases({"phrase": "x", "regex": "y"}), "policies.p.deny[0].regex"),
        (phrases(*["x"] * (MAX_PHRASES + 1)), "policies.p.deny"),
        (policy(allow={}), "policies.p.allow"),
    ],
)
def test_reader_and_schema_refuse_the_same(value: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_policies(yaml.safe_dump(value))
    assert caught.value.field == field
    if field != "7":  # JSON has no other keys than text
        assert not VALIDATOR.is_valid(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: other", "^default: there is no policy"),
        ("callers: {shop: other}", r"^callers\.shop: there is no policy"),
        ("policies: {a: {extends: b}, b: {extends: a}}", "circle"),
        ("policies:\n  a: {}\n  a: {}\n", r"^a: is given twice \(line 3\)"),
        ("policies: {a: {deny: [{phrase: x, name: n}, {phrase: y, name: n}]}}", r"^policies\.a\.deny: a name is given"),
        ("policies: {a: {custom_categories: [{code: S1, name: x}, {code: S1, name: y}]}}", "a code is given twice"),
        ("policies: &a {}\ncallers: *a", r"^the file: YAML aliases"),
        ("a: [", r"^the file: not YAML \(line 1\)"),
        ("a: !!python/object:os.system x", "^the file: not YAML"),
        ("a: \x01", "^the file: not YAML"),
        ("a: 2024-99-99", "^the file: not YAML"),
        ("policies: {p: {threshold: .nan}}", r"^policies\.p\.threshold: "),
        ("policies: {p: {threshold: 1" + "0" * 400 + "}}", r"^policies\.p\.threshold: is too large"),
        ("policies: {p: {deny: ['\u200b']}}", r"^policies\.p\.deny\[0\]\.phrase: "),
    ],
)
def test_what_the_schema_cannot_say_is_refused_too(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_policies(text)


def test_no_phrase_stands_in_an_error() -> None:
    text = "canary " * 100
    for value in (phrases(text), phrases({"phrase": text}), phrases({"phrase": "canary", "canary": 1, "name": text})):
        with pytest.raises(InvalidInputError) as caught:
            read_policies(yaml.safe_dump(value))
        assert "canary canary" not in str(caught.value)


def test_errors_name_the_file(tmp_path: Path) -> None:
    assert load_policies(None) == PolicyBook()
    (tmp_path / "good.yaml").write_text(COMPLETE)
    assert load_policies(tmp_path / "good.yaml").default == "standard"
    (tmp_path / "wrong.yaml").write_text("policies: {p: {threshold: 7}}")
    (tmp_path / "latin.yaml").write_bytes(b"default: \xff")
    (tmp_path / "large.yaml").write_bytes(b"#" * (strict_yaml.MAX_FILE_BYTES + 1))
    for name, problem in (
        ("missing", "No such file"),
        ("wrong", r"policies\.p\.threshold: expected"),
        ("latin", "not UTF-8"),
        ("large", "more than"),
    ):
        with pytest.raises(SettingsError, match=rf"^policies: .*{name}\.yaml: {problem}"):
            load_policies(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    "error", [InvalidInputError("policy.excluded_categories", "no"), UnsupportedError("policy.excluded_categories: no")]
)
def test_a_policy_that_the_model_refuses_is_named(error: Exception) -> None:
    book = read_policies(COMPLETE)

    def check(policy: Policy) -> None:
        if policy.excluded_categories:
            raise error

    with pytest.raises(SettingsError, match=r"^policies: policies\.(standard|strict): excluded_categories: no"):
        check_policies(book, check)
    check_policies(book, lambda policy: None)
