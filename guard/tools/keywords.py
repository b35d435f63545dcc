"""What a JSON Schema of arguments may say: draft 2020-12, without what could take long or reach outside.

Schemas come from callers and are evaluated on the engine's thread: references are local, patterns run in linear time
(``guard.tools.patterns``), and keywords that apply schemas by pattern or by what others evaluated are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

from guard.errors import UnsupportedError
from guard.tools.patterns import MISSING_EXTRA, Pattern

#: Keywords whose value is a schema, a list of schemas, or schemas by name.
_SCHEMA: Final = frozenset(
    ["items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else", "contentSchema"]
)
_SCHEMAS: Final = frozenset(["anyOf", "oneOf", "allOf", "prefixItems"])
_NAMED: Final = frozenset(["properties", "$defs", "definitions", "dependentSchemas"])
_REFUSED: Final = frozenset(
    [
        *("$schema", "$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
        *("patternProperties", "unevaluatedProperties", "unevaluatedItems"),
    ]
)


def _each(names: Iterable[str], value: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return dict.fromkeys(names, value)


_ANY_SCHEMA: Final = {"type": ["object", "boolean"]}
_TYPE: Final = {"enum": ["array", "boolean", "integer", "null", "number", "object", "string"]}
_NAMES: Final = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
_COUNTS: Final = ["minItems", "maxItems", "minContains", "maxContains", "minLength", "maxLength"]
#: The metaschemas of draft 2020-12 in one and for one level, so that nothing is looked up by reference: five times
#: faster than the published ones (https://json-schema.org/draft/2020-12/schema).
_LEVEL: Final = {
    "properties": {
        **_each(_SCHEMA, _ANY_SCHEMA),
        **_each(_SCHEMAS, {"type": "array", "minItems": 1, "items": _ANY_SCHEMA}),
        **_each(_NAMED, {"type": "object", "additionalProperties": _ANY_SCHEMA}),
        **_each(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"], {"type": "number"}),
        **_each([*_COUNTS, "minProperties", "maxProperties"], {"type": "integer", "minimum": 0}),
        **_each(["uniqueItems", "deprecated", "readOnly", "writeOnly"], {"type": "boolean"}),
        **_each(["enum", "examples"], {"type": "array"}),
        **_each(["title", "description", "format", "pattern", "$ref", "$comment"], {"type": "string"}),
        **_each(["contentEncoding", "contentMediaType"], {"type": "string"}),
        "type": {"anyOf": [_TYPE, {"type": "array", "minItems": 1, "items": _TYPE, "uniqueItems": True}]},
        "multipleOf": {"type": "number", "exclusiveMinimum": 0},
        "required": _NAMES,
        "dependentRequired": {"type": "object", "additionalProperties": _NAMES},
    }
}


@lru_cache(maxsize=256)  # an agent sends the same tools with every turn
def problem(text: str) -> str:
    """What is wrong with the schema of this JSON text; empty when nothing is. Quotes nothing but keywords.

    Raises UnsupportedError when the extra ``structured`` is not installed.
    """
    schema = json.loads(text)
    if schema.get("type") != "object":
        return 'not the schema of an object: its "type" must be "object"'
    visited: list[Mapping[str, Any]] = []

    def visit(inner: Mapping[str, Any]) -> Mapping[str, Any]:
        visited.append(inner)
        map_subschemas(inner, visit)
        return inner

    visit(schema)
    places = {id(inner) for inner in visited}
    return next((found for inner in visited if (found := _problem_here(inner, schema, places))), "")


def map_subschemas(
    schema: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """A copy of ``schema`` with ``change`` made to each schema right inside it, but to the plain true and false."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Mapping) else value

    copy = dict(schema)
    for key, value in schema.items():
        if key in _SCHEMA:
            copy[key] = changed(value)
        elif key in _SCHEMAS and isinstance(value, list | tuple):
            copy[key] = [changed(part) for part in value]
        elif key in _NAMED and isinstance(value, Mapping):
            copy[key] = {name: changed(part) for name, part in value.items()}
    return copy


def import_jsonschema() -> Any:
    """The package. Raises UnsupportedError naming the extra when it is not installed."""
    try:
        import jsonschema
    except ImportError as error:
        raise UnsupportedError(MISSING_EXTRA) from error
    return jsonschema


def _problem_here(inner: Mapping[str, Any], schema: Mapping[str, Any], places: set[int]) -> str:
    """Of one level; ``places`` are the ids of all levels of ``schema``."""
    refused = _REFUSED & inner.keys()
    if refused:
        return f"{min(refused)} is not supported here"
    for error in import_jsonschema().Draft202012Validator(_LEVEL).iter_errors(inner):
        return f"not a valid JSON Schema: {error.absolute_path[0]}"
    target = _target(schema, inner["$ref"]) if "$ref" in inner else True
    if not isinstance(target, bool) and id(target) not in places:
        return "$ref must name a schema inside this one: #/$defs/..."
    try:
        if "pattern" in inner:
            Pattern(inner["pattern"])
    except ValueError:
        return "pattern: not a regular expression without look-around and word borders"
    return ""


def _target(schema: Any, reference: str) -> Any:
    """What a JSON Pointer fragment (RFC 6901, section 6) points to; None when nothing."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found = schema
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, list) and key.isascii() and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found
