"""Labelled rows as a guard is asked about them. What cannot be read is kept apart with its line, never dropped."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.conversation import Conversation, Message, Role, Target, check_moderation_turns
from guard.errors import InvalidInputError
from guard.evaluation.files import Record, read_records

_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
#: Names of groups stand in reports, so they are short and on one line.
_MAX_NAME = 64


@dataclass(frozen=True)
class Columns:
    """Which column holds what. With ``text`` set, a row is one message of ``role`` (after the user message in
    ``context``, if that is set) and ``messages`` is not read. Labels are compared without case; 1.0 and true are "1"
    and "true".
    """

    messages: str = "messages"
    text: str | None = None
    context: str | None = None
    role: Role = Role.USER
    target: str = "target"
    label: str = "label"
    categories: str = "categories"
    lang: str = "lang"
    source: str = "source"
    unsafe_labels: frozenset[str] = frozenset({"unsafe", "1", "true"})
    safe_labels: frozenset[str] = frozenset({"safe", "0", "false"})

    def __post_init__(self) -> None:
        if self.unsafe_labels & self.safe_labels:
            raise InvalidInputError("columns", "a label is both safe and unsafe")
        if self.role not in (Role.USER, Role.ASSISTANT):
            raise InvalidInputError("columns.role", "expected user or assistant")

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns without which there is nothing to judge."""
        return (self.messages,) if self.text is None else (self.text, *((self.context,) if self.context else ()))

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which no row can be read."""
        return (*self.texts, self.label)


@dataclass(frozen=True)
class Row:
    """A conversation whose last message is labelled. ``number`` is its line (Parquet: row), from 1.

    ``key`` is a hash of what is judged: rows that ask the same have the same key. Empty ``lang`` or ``source``: none.
    """

    key: str
    number: int
    conversation: Conversation
    target: Target
    unsafe: bool
    categories: tuple[str, ...]
    lang: str
    source: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be evaluated. ``problem`` names the column and what is wrong, never the row's text."""

    number: int
    problem: str


@dataclass(frozen=True)
class DataSet:
    """A file of labelled rows; ``sha256`` is the file's."""

    name: str
    sha256: str
    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]


def read_data(path: Path, columns: Columns | None = None) -> DataSet:
    """Rows of a ``.jsonl``, ``.csv``, ``.tsv`` (each also ``.gz``) or ``.parquet`` file.

    Raises InvalidInputError when a required column or every row is unusable, UnsupportedError when Parquet needs a
    package that is not installed, OSError when the file cannot be read.
    """
    columns = columns or Columns()
    rows: list[Row] = []
    bad: list[BadRow] = []
    for record in read_records(path, columns.required):
        try:
            rows.append(_row(record, columns))
        except InvalidInputError as error:
            bad.append(BadRow(record.number, str(error)))
    if not rows:
        first = f"; row {bad[0].number}: {bad[0].problem}" if bad else ""
        raise InvalidInputError("data", f"{path.name}: none of {len(bad)} rows can be used{first}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return DataSet(path.name, digest, tuple(rows), tuple(bad))


def sample(rows: tuple[Row, ...], limit: int, seed: int) -> tuple[Row, ...]:
    """``limit`` random rows in the order of the file; the same seed chooses the same."""
    if limit < 1:
        raise InvalidInputError("limit", "expected at least 1")
    if limit >= len(rows):
        return rows
    return tuple(rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), limit)))


def row_key(conversation: Conversation, target: Target) -> str:
    """32 hexadecimal digits of the SHA-256 of what is judged."""
    value = [target.value, [[message.role.value, message.content] for message in conversation.messages]]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def judged_part(values: Mapping[str, Any], columns: Columns) -> tuple[Conversation, Target]:
    """What one row asks a guard about. Raises InvalidInputError naming the column, or the message."""
    conversation = Conversation(_messages(values, columns))
    target = _target(values.get(columns.target), conversation, columns.target)
    check_moderation_turns(conversation, target)
    return conversation, target


def _row(record: Record, columns: Columns) -> Row:
    if record.problem is not None:
        raise InvalidInputError("row", record.problem)
    values = record.values
    conversation, target = judged_part(values, columns)
    return Row(
        key=row_key(conversation, target),
        number=record.number,
        conversation=conversation,
        target=target,
        unsafe=_label(values.get(columns.label), columns),
        categories=_categories(values.get(columns.categories), columns.categories),
        lang=_name(values.get(columns.lang), columns.lang),
        source=_name(values.get(columns.source), columns.source),
    )


def _messages(values: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    if columns.text is not None:
        before = () if columns.context is None else (Message(Role.USER, _text(values, columns.context)),)
        return (*before, Message(columns.role, _text(values, columns.text)))
    value = values.get(columns.messages)
    if isinstance(value, str):  # a CSV cell
        value = _json(value, columns.messages)
    if not isinstance(value, list):
        raise InvalidInputError(columns.messages, "missing" if value is None else "expected a list of messages")
    return tuple(_message(item, f"{columns.messages}[{index}]") for index, item in enumerate(value))


def _message(value: Any, where: str) -> Message:
    roles = {role.value: role for role in Role}
    if not isinstance(value, dict) or value.get("role") not in roles:
        raise InvalidInputError(f"{where}.role", f"expected one of {', '.join(roles)}")
    if not isinstance(value.get("content"), str):
        raise InvalidInputError(f"{where}.content", "expected a string")
    return Message(roles[value["role"]], value["content"])


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if not isinstance(value, str):
        raise InvalidInputError(column, "missing" if value is None else "expected a string")
    return value


def _target(value: Any, conversation: Conversation, column: str) -> Target:
    """As declared; without a declaration, by the role of the last message."""
    if value is None or value == "":
        return Target.RESPONSE if conversation.messages[-1].role is Role.ASSISTANT else Target.PROMPT
    targets = {target.value: target for target in Target}
    if not isinstance(value, str) or value not in targets:
        raise InvalidInputError(column, f"expected one of {', '.join(targets)}")
    return targets[value]


def _label(value: Any, columns: Columns) -> bool:
    if value is None or value == "":
        raise InvalidInputError(columns.label, "missing")
    number = isinstance(value, float) and value.is_integer()
    text = str(int(value) if number else value).strip().casefold()
    if text in columns.unsafe_labels:
        return True
    if text in columns.safe_labels:
        return False
    known = ", ".join(sorted(columns.unsafe_labels | columns.safe_labels))
    raise InvalidInputError(columns.label, f"expected one of {known}")


def _categories(value: Any, column: str) -> tuple[str, ...]:
    """A list of codes, or one string of codes with commas, semicolons or spaces between them."""
    if isinstance(value, str):
        value = _json(value, column) if value.startswith("[") else re.split(r"[,;\s]+", value.strip())
        value = [code for code in value if code != ""]
    codes: Iterable[Any] = () if value is None else value
    if not isinstance(codes, list | tuple) or not all(
        isinstance(code, str) and _CODE.fullmatch(code) for code in codes
    ):
        raise InvalidInputError(column, "expected category codes such as S1")
    return tuple(dict.fromkeys(codes))


def _name(value: Any, column: str) -> str:
    if value is None:
        return ""
    text = str(value) if isinstance(value, str | int) else "\n"
    if len(text) > _MAX_NAME or not text.isprintable():
        raise InvalidInputError(column, f"expected a name of at most {_MAX_NAME} printable characters")
    return text


def _json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # whose own messages may quote the text
        raise InvalidInputError(column, "expected JSON") from None
