"""Tools and the JSON Schemas of their arguments: what a caller may write, and whether a call keeps to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from guard.conversation import TOOL_NAME, TOOL_NAME_RULE
from guard.errors import InvalidInputError
from guard.generation import Tool, ToolChoice, ToolMode
from guard.tools.keywords import import_jsonschema, problem
from guard.tools.patterns import Pattern
from guard.tools.values import canonical, check_value

_Rule = Callable[[Any, Any, Any, Any], Iterable[Any] | None]

MAX_TOOLS: Final = 64
MAX_DESCRIPTION_CHARACTERS: Final = 4000
MAX_SCHEMA_BYTES: Final = 32 * 1024
#: Of all tools together.
MAX_SCHEMAS_BYTES: Final = 256 * 1024
#: What checking one call may cost, in keywords evaluated and entries of their lists read: about a second at worst.
MAX_CHECKS: Final = 100_000
#: Keywords inside keywords while one value is checked, far from the depth at which Python gives up: there jsonschema's
#: native parts do not raise RecursionError but panic, and ``{"$ref": "#"}`` never ends.
MAX_NESTED_CHECKS: Final = 160


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


class ArgumentChecker:
    """Whether arguments keep to a tool's schema. Expects a tool that ``check_tools`` accepted.

    For one thread at a time.
    """

    def __init__(self, tool: Tool) -> None:
        jsonschema = import_jsonschema()
        from referencing import Registry

        draft = jsonschema.Draft202012Validator
        rules = {word: self._counted(rule) for word, rule in {**draft.VALIDATORS, "pattern": self._pattern}.items()}
        # An empty registry: a reference is found in the schema itself or not at all, never fetched.
        self._validator = jsonschema.validators.extend(draft, rules)(_plain(tool.parameters), registry=Registry())
        self._error = jsonschema.ValidationError
        self._patterns: dict[str, Pattern] = {}
        self._checks = self._nested = 0

    def accepts(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the schema takes ``arguments``; no, too, where finding out costs more than MAX_CHECKS, or goes deeper
        than MAX_NESTED_CHECKS.
        """
        self._checks = self._nested = 0
        try:
            return bool(self._validator.is_valid(arguments))
        except (RecursionError, ArithmeticError, _TooManyChecksError):
            return False

    def _counted(self, rule: _Rule) -> _Rule:
        def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            self._checks += 1 + (len(value) if isinstance(value, dict | list) else 0)
            if "uniqueItems" in schema and isinstance(instance, list):
                self._checks += len(instance) ** 2 // 32  # compared in pairs
            if self._checks > MAX_CHECKS or self._nested >= MAX_NESTED_CHECKS:
                raise _TooManyChecksError
            self._nested += 1
            try:
                yield from rule(validator, value, instance, schema) or ()
            finally:
                self._nested -= 1

        return counted

    def _pattern(self, validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, str):
            self._checks += len(instance) // 16
            if pattern not in self._patterns:
                self._patterns[pattern] = Pattern(pattern)
            if not self._patterns[pattern].found_in(instance):
                yield self._error("does not match the pattern")


class _TooManyChecksError(Exception):
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
    if found := problem(text):
        raise InvalidInputError(field, found)
    return size


def _plain(schema: Any) -> Any:
    """Dictionaries and lists only, without the outermost ``$schema``, which would choose another validator."""
    plain = json.loads(json.dumps(schema, default=dict))
    plain.pop("$schema", None)
    return plain
