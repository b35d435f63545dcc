"""Reading what a user wants judged or answered: the command line, standard input, and files."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.conversation import Message, Role
from guard.errors import InvalidInputError
from guard.generation import Tool

_PIECE_BYTES = 64 << 10


def read_text(argument: str) -> str:
    """The argument itself; ``-`` reads standard input."""
    return sys.stdin.read() if argument == "-" else argument


def read_pieces() -> Iterator[str]:
    """Standard input as it arrives, cut between characters. Raises InvalidInputError when it is not UTF-8.

    Read past Python's buffer: a thread that waits in it would keep the process from ending.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while data := os.read(sys.stdin.fileno(), _PIECE_BYTES):
            if text := decoder.decode(data):
                yield text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise InvalidInputError("text", "expected UTF-8") from None


def read_context(path: Path | None) -> list[Message]:
    """Messages of a JSON array, or of JSON lines: ``{"role": "user", "content": "..."}`` each, oldest first.

    Raises InvalidInputError naming the message (never its content), OSError when the file cannot be read.
    """
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in _lines(text)]
    except ValueError:  # UnicodeDecodeError and JSONDecodeError, whose own messages quote the text
        raise InvalidInputError("context", "expected UTF-8 with a JSON array, or one JSON object a line") from None
    return [_message(value, index) for index, value in enumerate(values)]


def read_json_object(path: Path, option: str) -> dict[str, Any]:
    """The JSON object in a file that ``option`` names; raises InvalidInputError, OSError when it cannot be read."""
    value = _read_json(path, option)
    if not isinstance(value, dict):
        raise InvalidInputError(option, "expected a JSON object")
    return value


def read_tools(path: Path) -> tuple[Tool, ...]:
    """Functions, one JSON object each: ``{"name": ..., "description": ..., "parameters": JSON Schema}``, the last two
    optional. Raises as ``read_json_object``.
    """
    values = _read_json(path, "--tools")
    if not isinstance(values, list):
        raise InvalidInputError("--tools", "expected a JSON array")
    for index, value in enumerate(values):
        if not isinstance(value, dict) or not {"name"} <= value.keys() <= {"name", "description", "parameters"}:
            problem = 'expected {"name": ..., "description": ..., "parameters": ...}, the last two optional'
            raise InvalidInputError(f"--tools: [{index}]", problem)
        if not isinstance(value["name"], str) or not isinstance(value.get("description", ""), str):
            raise InvalidInputError(f"--tools: [{index}]", "expected strings for name and description")
        if not isinstance(value.get("parameters", {}), dict):
            raise InvalidInputError(f"--tools: [{index}].parameters", "expected a JSON Schema")
    return tuple(Tool(**value) for value in values)


def _read_json(path: Path, option: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # as above
        raise InvalidInputError(option, "expected UTF-8 with JSON") from None


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _message(value: Any, index: int) -> Message:
    field = f"context[{index}]"
    roles = [role.value for role in Role]
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        raise InvalidInputError(field, 'expected exactly {"role": ..., "content": ...}')
    if value["role"] not in roles:
        raise InvalidInputError(f"{field}.role", f"expected one of {', '.join(roles)}")
    if not isinstance(value["content"], str):
        raise InvalidInputError(f"{field}.content", "expected a string")
    return Message(Role(value["role"]), value["content"])
