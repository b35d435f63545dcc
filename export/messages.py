"""Error messages about untrusted files."""

from __future__ import annotations


def quoted(value: object, limit: int = 120) -> str:
    """``repr(value)``, cut to ``limit`` characters: a hostile file can hold names of any length."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
