"""Reading what a user wants judged or answered: the command line, standard input, and a file of earlier messages."""

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
