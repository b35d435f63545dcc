"""Files that may change while the server runs: secrets that are rotated, callers that come and go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Signature = tuple[tuple[int, int, int] | None, ...]


def signature(paths: Iterable[Path]) -> Signature:
    """Differs when one of the files was written or replaced, links followed; None stands for one that is not there."""
    return tuple(map(_one, paths))


def _one(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
