"""Reading untrusted files: sizes are checked before memory is asked for, JSON is strict, every file read is hashed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from export.messages import quoted
from guard.errors import CheckpointError

#: config.json, tokenizer.json and the like; Llama 3's tokenizer.json is 17 MB.
MAX_TEXT_BYTES: Final = 40 << 20
#: Objects and lists in one JSON text (a tokenizer.json may have a list for each of Llama 3's 280,147 merges): an empty
#: one is 2 bytes in the file and over 60 in memory.
_MAX_JSON_CONTAINERS: Final = 1 << 20
_HASH_CHUNK_BYTES: Final = 4 << 20


class RandomAccessFile:
    """A regular file opened once, read by position; the same descriptor serves the hash and every later read."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            # O_NONBLOCK: a FIFO in a file's place must not hang the export; it means nothing for regular files.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.name}: cannot be opened: {_reason(error)}") from error
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{self.name}: not a regular file")
        self._descriptor = descriptor
        self.size = status.st_size

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; raises CheckpointError, before allocating, when the file ends earlier."""
        buffer = bytearray(self._inside(offset, length))
        self._fill(memoryview(buffer), offset)
        return bytes(buffer)

    def read_array(self, offset: int, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """``count`` items of ``dtype`` from byte ``offset``, as a fresh array; raises as ``read``."""
        item = np.dtype(dtype)
        self._inside(offset, count * item.itemsize)
        array = np.empty(count, item)
        self._fill(array.view(np.uint8).data, offset)
        return array

    def sha256(self) -> str:
        """Hex SHA-256 of the whole file."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, _HASH_CHUNK_BYTES):
            digest.update(self.read(offset, min(_HASH_CHUNK_BYTES, self.size - offset)))
        return digest.hexdigest()

    def _inside(self, offset: int, length: int) -> int:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(f"{self.name}: bytes {offset}..{offset + length} are beyond its {self.size} bytes")
        return length

    def _fill(self, view: memoryview, offset: int) -> None:
        while view:
            try:
                got = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise CheckpointError(f"{self.name}: cannot be read: {_reason(error)}") from error
            if not got:
                raise CheckpointError(f"{self.name}: became shorter while it was read")
            view, offset = view[got:], offset + got


class FileReader:
    """Reads the small files of a checkpoint directory and keeps the SHA-256 of each in ``hashes``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hashes: dict[str, str] = {}

    def exists(self, name: str) -> bool:
        """Whether ``name`` is there; a dangling link counts as there, so that it is reported and not passed over."""
        return os.path.lexists(self.directory / name)

    def open(self, name: str) -> RandomAccessFile:
        """Open and hash ``name`` for reading by position."""
        file = RandomAccessFile(self.directory / name)
        self.hashes[name] = file.sha256()
        return file

    def read_bytes(self, name: str) -> bytes:
        """The whole file; raises CheckpointError when it is missing or above ``MAX_TEXT_BYTES``."""
        file = RandomAccessFile(self.directory / name)
        if file.size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{name}: {file.size} bytes, the limit is {MAX_TEXT_BYTES}")
        data = file.read(0, file.size)
        self.hashes[name] = hashlib.sha256(data).hexdigest()
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """The file as a JSON object; raises CheckpointError when it is anything else."""
        return parse_json_object(self.read_bytes(name), name)

    def read_optional_json(self, name: str) -> dict[str, Any]:
        """As ``read_json``, but an absent file is an empty object."""
        return self.read_json(name) if self.exists(name) else {}


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Strict JSON: UTF-8, one object, no duplicate keys, no NaN; raises CheckpointError naming ``where``."""
    if data.count(b"[") + data.count(b"{") > _MAX_JSON_CONTAINERS:
        raise CheckpointError(f"{where}: more than {_MAX_JSON_CONTAINERS} JSON objects and lists")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, _StrictnessError) else "not JSON"
        raise CheckpointError(f"{where}: {problem}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object")
    return value


class _StrictnessError(ValueError):
    """A JSON text that Python would read but that two readers could understand differently."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _StrictnessError(f"duplicate key {quoted(twice)}")
    return result


def _no_constant(name: str) -> Any:
    raise _StrictnessError(f"{name} is not JSON")


def _reason(error: OSError | ValueError) -> str:
    """The system's words without the path, which may be private."""
    return (error.strerror if isinstance(error, OSError) else None) or "invalid path"
