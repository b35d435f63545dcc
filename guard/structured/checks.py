"""What a caller's output format may be: the checks that need no grammar library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from math import lcm
from typing import Any, assert_never

from guard.errors import InvalidInputError
from guard.generation import ChoiceFormat, JsonFormat, OutputFormat, RegexFormat

MAX_SCHEMA_BYTES = 32 << 10
MAX_PATTERN_BYTES = 4 << 10
MIN_CHOICES, MAX_CHOICES, MAX_CHOICE_CHARACTERS = 2, 256, 256
#: Automata of ``multipleOf`` have about as many states as the number has digits' values: 999983 took 15 s and 400 MB.
MAX_MULTIPLE_OF = 10_000
#: Each pair of them is compared: 300 took 3.4 s.
MAX_PATTERN_PROPERTIES = 64

SCHEMA_FIELD = "response_format.json_schema.schema"
PATTERN_FIELD = "response_format.regex.pattern"
CHOICES_FIELD = "response_format.choice.choices"


def check_format(output_format: OutputFormat) -> tuple[str, str]:
    """The format's field, for errors, and a text that tells it from all other formats (after ":", the JSON Schema).

    Raises InvalidInputError naming the field and the limit.
    """
    match output_format:
        case JsonFormat(schema):
            return SCHEMA_FIELD, "schema:" + _schema_text(schema)
        case RegexFormat(pattern):
            _check_utf8(PATTERN_FIELD, pattern)
            if not 0 < len(pattern.encode()) <= MAX_PATTERN_BYTES:
                raise InvalidInputError(PATTERN_FIELD, f"expected 1 to {MAX_PATTERN_BYTES} bytes")
            if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
                raise InvalidInputError(PATTERN_FIELD, "unknown escape sequence")
            return PATTERN_FIELD, "regex:" + pattern
        case ChoiceFormat(choices):
            _check_choices(choices)
            return CHOICES_FIELD, "choice:" + json.dumps(choices)
        case _:
            assert_never(output_format)


def _check_choices(choices: tuple[str, ...]) -> None:
    if not MIN_CHOICES <= len(choices) <= MAX_CHOICES:
        raise InvalidInputError(CHOICES_FIELD, f"expected {MIN_CHOICES} to {MAX_CHOICES}")
    seen: set[str] = set()
    for index, choice in enumerate(choices):
        field = f"{CHOICES_FIELD}[{index}]"
        _check_utf8(field, choice)
        if not 0 < len(choice) <= MAX_CHOICE_CHARACTERS:
            raise InvalidInputError(field, f"expected 1 to {MAX_CHOICE_CHARACTERS} characters")
        if choice in seen:
            raise InvalidInputError(field, "is there twice")
        seen.add(choice)


def _check_utf8(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(field, "has a lone surrogate, which is not valid Unicode") from None


def _schema_text(schema: Mapping[str, Any]) -> str:
    """The schema as JSON, within the limits."""
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except RecursionError:
        raise InvalidInputError(SCHEMA_FIELD, "nested too deeply") from None
    except (TypeError, ValueError):
        raise InvalidInputError(SCHEMA_FIELD, "is not JSON") from None
    if size > MAX_SCHEMA_BYTES:
        raise InvalidInputError(SCHEMA_FIELD, f"{size} bytes, the limit is {MAX_SCHEMA_BYTES}")
    if "x-guidance" in schema:
        raise InvalidInputError(SCHEMA_FIELD, "x-guidance is not supported")
    _check_keywords(schema)
    return text


def _check_keywords(schema: Mapping[str, Any]) -> None:
    """Refuse what llguidance lets pass: keywords whose cost its own limits do not catch, counted over the whole schema
    because different places meet in ``allOf`` and ``$ref``, and keywords that it does not enforce exactly.
    """
    multiples: list[int] = []
    patterns = 0
    waiting: list[object] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting.extend(part.values())
            multiple = part.get("multipleOf")
            if isinstance(multiple, int | float) and not isinstance(multiple, bool):
                # Powers of ten cost nothing: 0.25 is as hard as 25.
                digits = "".join(map(str, Decimal(str(multiple)).as_tuple().digits)).strip("0")
                multiples.append(int(digits or "1"))
            named = part.get("patternProperties")
            patterns += len(named) if isinstance(named, Mapping) else 0
            least, required = part.get("minProperties"), part.get("required")
            if isinstance(least, int) and least > max(1, len(required) if isinstance(required, list) else 0):
                # A grammar counts keys as they are written, and a key that is written twice is one property.
                raise InvalidInputError(SCHEMA_FIELD, "minProperties above the number of required: not supported")
        elif isinstance(part, list | tuple):
            waiting.extend(part)
    if lcm(*multiples) > MAX_MULTIPLE_OF or sum(multiples) > MAX_MULTIPLE_OF:
        raise InvalidInputError(SCHEMA_FIELD, f"multipleOf: sum or common multiple of all is above {MAX_MULTIPLE_OF}")
    if patterns > MAX_PATTERN_PROPERTIES:
        raise InvalidInputError(SCHEMA_FIELD, f"{patterns} patternProperties, the limit is {MAX_PATTERN_PROPERTIES}")
