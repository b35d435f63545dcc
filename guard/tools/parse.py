"""Calls as models write them: JSON objects, lists of them, and Python's call syntax in a list."""

from __future__ import annotations

import ast
import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

from guard.conversation import ToolCall
from guard.generation import Tool, ToolChoice
from guard.tools.brackets import Brackets
from guard.tools.schema import ArgumentChecker
from guard.tools.values import canonical, check_value, read_json, read_object

#: The keys of a call in JSON. Models write "name" or "function", "parameters" or "arguments", and may add the others.
CALL_KEYS: Final = frozenset(["name", "function", "parameters", "arguments", "type", "id"])
_NAME: Final = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(?=\()")
_COMMA: Final = re.compile(r"\s*,?\s*")
#: Python keeps the backslash of an escape that it does not know, and warns.
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = frozenset("\n\\'\"abfnrtvxNuU01234567")
#: A string and the letters before it, which would give its backslashes, or all of it, another meaning.
_STRING: Final = re.compile(r"""([A-Za-z]*)(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", re.DOTALL)
_NAMED_VALUES: Final = {"true": True, "false": False, "null": None}


class CallReader:
    """Reads calls of the tools that ``choice`` allows. Expects what ``check_tools`` accepted; for one thread."""

    def __init__(self, tools: Sequence[Tool], choice: ToolChoice) -> None:
        self._tools = {tool.name: tool for tool in tools if choice.name in ("", tool.name)}
        self._checkers: dict[str, ArgumentChecker] = {}
        self.names = frozenset(self._tools)

    def read(self, value: str) -> list[ToolCall]:
        """The calls in the text of one bracketed value, one or more.

        Raises ValueError when it is none, names another tool, or has arguments that the tool's schema refuses.
        """
        pairs = _python_calls(value) if value.startswith("[") and _NAME.match(value, 1) else _json_calls(value)
        return [self._call(name, arguments) for name, arguments in pairs]

    def _call(self, name: str, arguments: dict[str, Any]) -> ToolCall:
        if name not in self._tools:
            raise ValueError("not one of the tools")
        if name not in self._checkers:
            self._checkers[name] = ArgumentChecker(self._tools[name])
        if not self._checkers[name].accepts(arguments):
            raise ValueError("arguments that the schema refuses")
        return ToolCall(f"call_{secrets.token_hex(8)}", name, canonical(arguments))


def _json_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    value = read_json(text)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise ValueError("an empty list")
    return [_json_call(call) for call in calls]


def _json_call(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        if not value.keys() <= {"type", "id", "function"}:
            raise ValueError("not a call")
        value = value["function"]
    if not isinstance(value, dict) or not value.keys() <= CALL_KEYS or value.get("type", "function") != "function":
        raise ValueError("not a call")
    names = [value[key] for key in ("name", "function") if key in value]
    arguments = [value[key] for key in ("parameters", "arguments") if key in value] or [{}]
    if len(names) != 1 or not isinstance(names[0], str) or len(arguments) != 1:
        raise ValueError("not a call")
    return names[0], _arguments(arguments[0])


def _arguments(value: Any) -> dict[str, Any]:
    """Arguments may be missing, or a JSON text in a string as in OpenAI's API."""
    if value is None:
        return {}
    if isinstance(value, str):
        return read_object(value)
    if not isinstance(value, dict):
        raise ValueError("arguments that are not an object")
    return value


def _python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """``[f(a='x', b=1), g()]``: names as tools have them, keyword arguments that are literals."""
    calls, position = [], 1
    while match := _NAME.match(text, position):
        end = Brackets(match.end()).advance(text)
        if end is None:
            break
        calls.append((match[1], _keywords(text[match.end() : end])))
        comma = _COMMA.match(text, end)
        position = comma.end() if comma else end
        if comma and "," not in comma[0]:
            break
    if not calls or text[position:].strip() != "]":
        raise ValueError("not a list of calls")
    return calls


def _keywords(text: str) -> dict[str, Any]:
    """The arguments of a call in Python, from its opening to its closing bracket. Python's own words (``from``) cannot
    name an argument there; in JSON they can.
    """
    if any(string[1] for string in _STRING.finditer(text)):
        raise ValueError("a string with a prefix")
    text = _ESCAPE.sub(lambda found: found[0] if found[1] in _ESCAPES else f"\\{found[0]}", text)
    try:
        call = ast.parse(f"f{text}", mode="eval").body
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("not Python") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("not keyword arguments")
    arguments = {keyword.arg: _literal(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    if len(arguments) != len(call.keywords):
        raise ValueError("an argument that comes twice")
    check_value(arguments)
    return arguments


def _literal(node: ast.expr) -> Any:
    """The JSON value of a literal; ``check_value`` refuses constants that JSON does not have."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id="true" | "false" | "null" as name):
            return _NAMED_VALUES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if number is not True:
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            found = {_key(key): _literal(value) for key, value in zip(keys, values, strict=True)}
            if len(found) != len(keys):
                raise ValueError("a key that comes twice")
            return found
        case _:
            raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("a key that is not a string")
