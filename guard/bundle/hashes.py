"""SHA-256 of files, on all the processors at once: a load waits for it, and one takes a second for 1.4 GB."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guard.bundle.manifest import PIECE_BYTES, FileRecord
from guard.engine.cpus import available_cpus
from guard.errors import BundleError

#: Bytes read at a time: they stay in the processor's cache until they are hashed.
_BUFFER_BYTES = 256 << 10


@dataclass(frozen=True)
class _Span:
    """A part of a file, and the hash that it should have."""

    path: Path
    offset: int
    length: int
    sha256: str


def record_file(path: Path) -> FileRecord:
    """The record of a finished file: read twice where it is large, for its whole and for its pieces."""
    size = path.stat().st_size
    pieces = None
    if size > PIECE_BYTES:
        pieces = tuple(_sha256(path, start, PIECE_BYTES) for start in range(0, size, PIECE_BYTES))
    return FileRecord(_sha256(path, 0, size), size, pieces)


def check_files(root: Path, files: Mapping[str, FileRecord], whole_files: bool) -> None:
    """Raises BundleError naming the first file in ``root`` that is not as its record says, or no regular file.

    A file whose record has pieces is checked by them, and with ``whole_files`` also as a whole.
    """
    spans: list[_Span] = []
    for name, record in sorted(files.items()):
        path = root / name
        check_regular(path, name)
        size = path.stat().st_size
        if size != record.bytes:
            raise BundleError(f"{name}: {size} bytes, the manifest says {record.bytes}")
        if record.pieces is None or whole_files:
            spans.append(_Span(path, 0, size, record.sha256))
        for index, piece in enumerate(record.pieces or ()):
            spans.append(_Span(path, index * PIECE_BYTES, PIECE_BYTES, piece))
    spans.sort(key=lambda span: -span.length)  # a long one begun last would be waited for alone
    with ThreadPoolExecutor(available_cpus(), "hash") as pool:
        wrong = [span.path.name for span, right in zip(spans, pool.map(_is_right, spans), strict=True) if not right]
    for name in sorted(wrong):
        raise BundleError(f"{name}: SHA-256 differs from the manifest")


def check_regular(path: Path, name: str) -> None:
    """Raises BundleError for what is missing, or no regular file."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        raise BundleError(f"{name}: missing") from None
    if not stat.S_ISREG(mode):
        raise BundleError(f"{name}: not a regular file (links are not followed)")


def _is_right(span: _Span) -> bool:
    return _sha256(span.path, span.offset, span.length) == span.sha256


def _sha256(path: Path, offset: int, length: int) -> str:
    """Of ``length`` bytes from ``offset``, or up to the end of the file."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length and (read := file.readinto(buffer[: min(length, _BUFFER_BYTES)])):
            digest.update(buffer[:read])
            length -= read
    return digest.hexdigest()
