from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from guard.errors import InvalidInputError, UnsupportedError
from guard.generation import Tool, ToolChoice, ToolMode
from guard.tools import keywords, patterns
from guard.tools.schema import ArgumentChecker, check_tools
from guard.tools.values import MAX_DEPTH

AUTO, NONE, REQUIRED = (ToolChoice(mode) for mode in (ToolMode.AUTO, ToolMode.NONE, ToolMode.REQUIRED))


def tool(name: str = "f", description: str = "", /, **schema: Any) -> Tool:
    return Tool(name, description, {"type": "object", **schema})


def refused(*tools: Tool, choice: ToolChoice = AUTO) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        check_tools(tools, choice)
    return caught.value


def test_tools_that_are_fine() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    check_tools((), AUTO)
    check_tools((), NONE)
    check_tools((Tool("no-arguments_1"),), REQUIRED)
    check_tools((tool(properties={"root": {"$ref": "#/$defs/tree"}}, **{"$defs": {"tree": tree}}),), AUTO)
    check_tools((tool("a", "x" * 4000), tool("b" * 64)), ToolChoice(name="a"))
    check_tools((tool(properties={"$id": {"type": "string"}, "patternProperties": True}),), AUTO)
    check_tools((tool(**{"$schema": "http://json-schema.org/draft-07/schema#"}),), AUTO)


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a.b", "é", "f\n", "<|eot_id|>"])
def test_names(name: str) -> None:
    assert refused(tool("fine"), tool(name)).field == "tools[1].name"


def test_lists_and_texts_are_bounded() -> None:
    assert refused(*(tool(f"f{index}") for index in range(65))).field == "tools"
    assert refused(tool("a"), tool("b"), tool("a")).field == "tools[2].name"
    assert "4001 characters, the limit is 4000" in str(refused(tool("f", "x" * 4001)))
    assert refused(tool("f", "\ud800")).field == "tools[0].description"
    assert "the limit is 32768" in str(refused(tool(title="x" * 32768)))
    assert refused(*(tool(f"f{index}", title="x" * 32000) for index in range(9))).field == "tools"


def test_choices() -> None:
    assert refused(tool("f"), choice=ToolChoice(name="g")).field == "tool_choice_name"
    assert refused(choice=ToolChoice(name="g")).field == "tool_choice_name"
    assert refused(tool("f"), choice=ToolChoice(ToolMode.NONE, "f")).field == "tool_choice_name"
    assert refused(choice=REQUIRED).field == "tool_choice"


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "string"}, "object"),
        ({}, "object"),
        ({"properties": {"a": {"type": "text"}}}, "type"),
        ({"required": "a"}, "required"),
        ({"properties": {"a": 5}}, "properties"),
        ({"properties": {"a": {"items": {"$ref": "https://example.com/schema"}}}}, r"\$ref"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, r"\$ref"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, r"\$ref"),
        ({"properties": {"a": {"$ref": "#/x-hidden"}}, "x-hidden": {"pattern": "("}}, r"\$ref"),
        ({"properties": {"a": {"$ref": "#/minProperties"}}, "minProperties": 1}, r"\$ref"),
        ({"patternProperties": {"(a+)+$": {}}}, "patternProperties is not supported"),
        ({"anyOf": [{"unevaluatedProperties": False}]}, "unevaluatedProperties is not supported"),
        ({"$defs": {"a": {"$id": "https://example.com"}}}, r"\$id is not supported"),
        ({"items": {"$schema": "http://json-schema.org/draft-07/schema#"}}, r"\$schema is not supported"),
        ({"properties": {"a": {"pattern": "("}}}, "pattern"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "pattern"),
        ({"propertyNames": {"pattern": "\\bword"}}, "pattern"),
        ({"default": float("nan")}, "finite"),
        ({"default": "\ud800"}, "Unicode"),
        ({"default": {1: 2}}, "JSON"),
        ({"default": b"x"}, "JSON"),
    ],
)
def test_schemas_that_are_refused(schema: dict[str, Any], problem: str) -> None:
    error = refused(
        tool("fine"), Tool("f", "", schema if not schema or "type" in schema else {"type": "object"} | schema)
    )
    assert error.field == "tools[1].parameters"
    with pytest.raises(InvalidInputError, match=problem):
        raise error


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert refused(tool(not_=schema)).field == "tools[0].parameters"


def test_problems_quote_nothing_of_the_caller() -> None:
    error = refused(tool(properties={"canary": {"type": "canary"}}))
    assert "canary" not in str(error)


@pytest.mark.parametrize(
    ("schema", "value", "accepted"),
    [
        ({"type": "integer"}, 1, True),
        ({"type": "integer"}, "1", False),
        ({"type": "integer"}, True, False),
        ({"pattern": "b"}, "abc", True),
        ({"pattern": "^b"}, "abc", False),
        ({"pattern": '^"\\\\\n$'}, '"\\\n', True),
        ({"pattern": "^é+$"}, "éé", True),
        ({"pattern": "b"}, 5, True),
        ({"$ref": "#/$defs/tree"}, {"kids": [{"kids": []}]}, True),
        ({"$ref": "#/$defs/tree"}, {"kids": [{"kids": 1}]}, False),
        ({"$ref": "#/$defs/a~1b%25"}, 1, True),
        ({"$ref": "#/$defs/a~1b%25"}, "1", False),
        ({"$ref": "#/anyOf/0/properties/v"}, None, True),
        ({"enum": [1, None]}, None, True),
        ({"multipleOf": 0.5}, 10**400, False),
    ],
)
def test_arguments_are_held_against_the_schema(schema: dict[str, Any], value: Any, accepted: bool) -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    definitions = {"tree": tree, "a/b%": {"type": "integer"}}
    function = tool(properties={"v": schema}, anyOf=[{"properties": {"v": True}}], **{"$defs": definitions})
    check_tools((function,), AUTO)
    assert ArgumentChecker(function).accepts({"v": value}) is accepted


def test_another_draft_does_not_bring_its_own_validator() -> None:
    """Its patterns would be Python's, which take exponential time."""
    function = tool(properties={"v": {"pattern": "(a+)+$"}}, **{"$schema": "http://json-schema.org/draft-07/schema#"})
    check_tools((function,), AUTO)
    began = time.monotonic()
    assert not ArgumentChecker(function).accepts({"v": "a" * 5000 + "b"})
    assert time.monotonic() - began < 5


DOUBLING = {f"d{index}": {"allOf": [{"$ref": f"#/$defs/d{index + 1}"}] * 2} for index in range(40)}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/$defs/d0"}, 1),
        ({"items": {"anyOf": [{"const": index} for index in range(1500)]}}, [1499] * 5000),
        ({"items": {"enum": list(range(5000))}}, [4999] * 5000),
        ({"items": {"properties": {str(index): True for index in range(2000)}}}, [{}] * 5000),
        ({"uniqueItems": True}, [{"a": index} for index in range(5000)]),
        ({"allOf": [{"pattern": f"^x*y{index}?"} for index in range(500)]}, "x" * 60_000 + "y"),
    ],
)
def test_schemas_that_take_long_are_cut_short(schema: dict[str, Any], value: Any) -> None:
    function = tool(properties={"v": schema}, **{"$defs": {**DOUBLING, "d40": {"type": "integer"}}})
    check_tools((function,), AUTO)
    began = time.monotonic()
    assert not ArgumentChecker(function).accepts({"v": value})
    assert time.monotonic() - began < 20


def test_long_arguments_are_checked_to_the_end() -> None:
    items = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "string"}}, "required": ["a"]}
    function = tool(properties={"v": {"type": "array", "items": items}})
    assert ArgumentChecker(function).accepts({"v": [{"a": 2, "b": "x"}] * 5000})
    assert not ArgumentChecker(function).accepts({"v": [*[{"a": 2, "b": "x"}] * 5000, {}]})
    unique = tool(properties={"v": {"uniqueItems": True}})
    assert ArgumentChecker(unique).accepts({"v": list(range(1500))})
    assert not ArgumentChecker(unique).accepts({"v": [*range(1500), 5]})


def test_references_in_a_circle() -> None:
    function = tool(properties={"v": {"$ref": "#/$defs/a"}}, **{"$defs": {"a": {"$ref": "#/$defs/a"}}})
    check_tools((function,), AUTO)
    assert not ArgumentChecker(function).accepts({"v": 1})


@pytest.mark.parametrize("circle", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}], "type": ["object"]}])
def test_circles_end_before_the_stack_does(circle: dict[str, Any]) -> None:
    """Failure test 17: native code that runs out of Python's stack panics, which would take the engine along."""
    checker = ArgumentChecker(Tool("f", "", {"type": "object"} | circle))

    def accepts(frames: int) -> bool:
        return accepts(frames - 1) if frames else checker.accepts({"a": 1})

    assert not any(accepts(frames) for frames in range(40))  # one of them would end in the native part


def test_arguments_as_deep_as_json_may_be() -> None:
    checker = ArgumentChecker(Tool("f", "", {"type": "object", "properties": {"a": {"$ref": "#"}}}))
    value: dict[str, Any] = {}
    for _ in range(MAX_DEPTH - 1):
        value = {"a": value}
    assert checker.accepts(value)


@pytest.mark.parametrize("package", ["jsonschema", "llguidance"])
def test_without_the_extra_tools_are_refused_by_name(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns._byte_tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=r"guardlet\[structured\]"):
        check_tools((tool(title=package, properties={"a": {"pattern": "a"}}),), AUTO)
    check_tools((), AUTO)


#: What every keyword may or may not have as its value, and schemas of them.
ODD = st.sampled_from([None, True, 0, -1, 1.5, 3, "", "text", "string", [], ["a"], ["a", "a"], [1], {}, {"a": ["b"]}])
SOUND = {
    **dict.fromkeys(["items", "not", "if", "then", "else", "contains", "propertyNames", "additionalProperties"], "one"),
    **dict.fromkeys(["anyOf", "oneOf", "allOf", "prefixItems"], "list"),
    **dict.fromkeys(["properties", "$defs", "definitions", "dependentSchemas"], "named"),
}
PLAIN = sorted(
    set(Draft202012Validator.VALIDATORS) - {"$ref", "$dynamicRef", "pattern", "patternProperties"} - SOUND.keys()
)
KEYWORDS = [word for word in [*PLAIN, "title", "default", "deprecated", "examples"] if not word.startswith("uneval")]


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    shapes = {
        "one": inner,
        "list": st.lists(inner, max_size=2),
        "named": st.dictionaries(st.just("a"), inner, max_size=1),
    }
    sound = {word: st.one_of(shapes[kind], ODD) for word, kind in SOUND.items()}
    odd = dict.fromkeys(KEYWORDS, ODD)
    words = st.lists(st.sampled_from([*sound, *odd]), max_size=4, unique=True)
    return words.flatmap(lambda chosen: st.fixed_dictionaries({word: (sound | odd)[word] for word in chosen}))


@given(st.recursive(schemas(st.booleans()), schemas, max_leaves=4))
def test_schemas_are_valid_where_the_published_metaschema_says_so(schema: dict[str, Any]) -> None:
    whole = schema | {"type": "object"}
    valid = Draft202012Validator(Draft202012Validator.META_SCHEMA).is_valid(whole)
    assert (keywords.problem(json.dumps(whole)) == "") is valid
