"""Tools and the JSON Schemas of their arguments: what a caller may write, and whether a call keeps to it.

Schemas come from callers and are evaluated on the engine's thread, so those that could take long are refused or cut
short: patterns run in linear time (``guard.tools.patterns``), references are local, and how often they are followed
is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

from guard.conversation import TOOL_NAME, TOOL_NAME_RULE
from guard.errors import InvalidInputError, UnsupportedError
from guard.generation import Tool, ToolChoice, ToolMode
from guard.tools.patterns import MISSING_EXTRA, Pattern
from guard.tools.values import canonical, check_value

MAX_TOOLS: Final = 64
MAX_DESCRIPTION_CHARACTERS: Final = 4000
MAX_SCHEMA_BYTES: Final = 32 * 1024
#: Of all tools together: checking a schema takes about a millisecond a kilobyte.
MAX_SCHEMAS_BYTES: Final = 256 * 1024
#: References followed while one call is checked: schemas of a few lines can double the work at each.
MAX_REFERENCES: Final = 10_000
#: Keywords whose value is a schema, a list of schemas, or schemas by name.
_SCHEMA: Final = frozenset(
    ["items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else", "contentSchema"]
)
_SCHEMAS: Final = frozenset(["anyOf", "oneOf", "allOf", "prefixItems"])
_NAMED: Final = frozenset(["properties", "$defs", "definitions", "dependentSchemas"])
#: What is refused: other names for a schema's place, and what applies schemas by pattern or by what others evaluated.
_REFUSED: Final = frozenset(
    [
        *("$schema", "$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
        *("patternProperties", "unevaluatedProperties", "unevaluatedItems"),
    ]
)


def check_tools(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Check a request's tools and its choice among them.

    Raises InvalidInputError naming the field (``tools[2].parameters``, ``tool_choice_name``), UnsupportedError when
    there are tools and the extra ``structured`` is not installed.
    """
    names = [tool.name for tool in tools]
    if choice.name and choice.mode is ToolMode.NONE:
        raise InvalidInputError("tool_choice_name", "cannot be combined with no tool calls")
    if choice.name and choice.name not in names:
        raise InvalidInputError("tool_choice_name", "names none of the tools")
    if choice.mode is ToolMode.REQUIRED and not tools:
        raise InvalidInputError("tool_choice", "requires a call, and there are no tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidInputError("tools", f"{len(tools)}, the limit is {MAX_TOOLS}")
    total = 0
    for index, tool in enumerate(tools):
        field = f"tools[{index}]"
        if not TOOL_NAME.fullmatch(tool.name):
            raise InvalidInputError(f"{field}.name", TOOL_NAME_RULE)
        if tool.name in names[:index]:
            raise InvalidInputError(f"{field}.name", "the same as another tool's")
        _check_description(f"{field}.description", tool.description)
        total += _check_schema(f"{field}.parameters", tool.parameters)
        if total > MAX_SCHEMAS_BYTES:
            raise InvalidInputError("tools", f"the schemas have more than {MAX_SCHEMAS_BYTES} bytes together")


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


class ArgumentChecker:
    """Whether arguments keep to a tool's schema. Expects a tool that ``check_tools`` accepted.

    For one thread at a time.
    """

    def __init__(self, tool: Tool) -> None:
        jsonschema = _jsonschema()
        from referencing import Registry

        ours = {"$ref": self._reference, "pattern": self._pattern}
        validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, ours)
        # An empty registry: a reference is found in the schema itself or not at all, never fetched.
        self._validator = validator(_plain(tool.parameters), registry=Registry())
        self._patterns: dict[str, Pattern] = {}
        self._references = 0

    def accepts(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the schema takes ``arguments``; no, too, where finding out takes too long."""
        self._references = 0
        try:
            return bool(self._validator.is_valid(arguments))
        except (RecursionError, ArithmeticError, _TooManyReferencesError):
            return False

    def _reference(self, validator: Any, ref: str, instance: Any, schema: Any) -> Iterator[Any]:
        self._references += 1
        if self._references > MAX_REFERENCES:
            raise _TooManyReferencesError
        yield from _jsonschema().Draft202012Validator.VALIDATORS["$ref"](validator, ref, instance, schema)

    def _pattern(self, validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, str):
            if pattern not in self._patterns:
                self._patterns[pattern] = Pattern(pattern)
            if not self._patterns[pattern].found_in(instance):
                yield _jsonschema().ValidationError("does not match the pattern")


class _TooManyReferencesError(Exception):
    pass


def _check_description(field: str, description: str) -> None:
    if len(description) > MAX_DESCRIPTION_CHARACTERS:
        raise InvalidInputError(field, f"{len(description)} characters, the limit is {MAX_DESCRIPTION_CHARACTERS}")
    try:
        description.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(field, "has a lone surrogate, which is not valid Unicode") from None


def _check_schema(field: str, schema: Mapping[str, Any]) -> int:
    """The bytes of ``schema`` as compact JSON."""
    try:
        check_value(schema)
    except ValueError:
        raise InvalidInputError(field, "not a JSON value of bounded depth, with finite numbers, in Unicode") from None
    text = canonical(_plain(schema))
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise InvalidInputError(field, f"{size} bytes, the limit is {MAX_SCHEMA_BYTES}")
    problem = _problem(text)
    if problem:
        raise InvalidInputError(field, problem)
    return size


@lru_cache(maxsize=256)  # an agent sends the same tools with every turn
def _problem(text: str) -> str:
    """What is wrong with the schema of this JSON text; empty when nothing is."""
    schema = json.loads(text)
    if schema.get("type") != "object":
        return 'not the schema of an object: its "type" must be "object"'
    draft = _jsonschema().Draft202012Validator
    for error in draft(draft.META_SCHEMA).iter_errors(schema):
        keyword = next((part for part in reversed(error.absolute_path) if part in draft.VALIDATORS), None)
        return "not a valid JSON Schema" + (f": {keyword}" if keyword else "")
    visited: list[Mapping[str, Any]] = []

    def visit(inner: Mapping[str, Any]) -> Mapping[str, Any]:
        visited.append(inner)
        map_subschemas(inner, visit)
        return inner

    visit(schema)
    places = {id(inner) for inner in visited}
    for inner in visited:
        refused = _REFUSED & inner.keys()
        if refused:
            return f"{min(refused)} is not supported here"
        target = _target(schema, inner["$ref"]) if "$ref" in inner else True
        if not isinstance(target, bool) and id(target) not in places:
            return "$ref must name a schema inside this one: #/$defs/..."
        try:
            Pattern(inner.get("pattern", ""))
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


def _plain(schema: Any) -> Any:
    """Dictionaries and lists only, without the outermost ``$schema``, which would choose another validator."""
    plain = json.loads(json.dumps(schema, default=dict))
    plain.pop("$schema", None)
    return plain


def _jsonschema() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise UnsupportedError(MISSING_EXTRA) from error
    return jsonschema
