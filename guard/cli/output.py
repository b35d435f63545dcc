"""Results as JSON (stable: fields are added, never renamed) and as lines for people."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from enum import Enum
from typing import Any


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``: one object on stdout; an error is one object on stderr."""
    parser.add_argument("--json", action="store_true", help="write one JSON object to stdout (errors: to stderr)")


def to_json(result: Any) -> str:
    """A frozen dataclass as one line of JSON; enums by their value."""
    return json.dumps(asdict(result), default=_enum, ensure_ascii=False, allow_nan=False)


def milliseconds(seconds: float) -> str:
    """``"131 ms"``."""
    return f"{seconds * 1000:.0f} ms"


def megabytes(count: int) -> str:
    """``"134.7 MB"`` (10^6 bytes)."""
    return f"{count / 1e6:.1f} MB"


def _enum(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} is not JSON")
