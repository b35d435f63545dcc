"""Our own reader of the GGUF container (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian.

A file is: magic, version, tensor count, metadata count, metadata (key, type, value), tensor infos (name, dimensions,
type, offset), padding, tensor data. Counts and lengths are checked against what is left of the file before anything of
that size is made. A hostile file can make these functions raise CheckpointError or UnsupportedError, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from export.checkpoint.files import RandomAccessFile
from export.checkpoint.ggml_types import OTHER_NAMES, READABLE, GgmlType
from export.checkpoint.model import Float32
from export.checkpoint.safetensors import row_range
from export.messages import quoted
from guard.errors import CheckpointError, UnsupportedError

#: Llama 3's vocabulary and merges take 8 MB; everything before the tensor data must fit this (a hostile file of that
#: size makes 160 MB of Python texts).
MAX_HEADER_BYTES: Final = 24 << 20
_MAX_ENTRIES: Final = 1 << 16  # metadata keys, tensors
_MAX_STRINGS: Final = 1 << 20  # in one array; Llama 3 has 280,147 merges
_MAX_NAME_BYTES: Final = 1 << 16
_MAX_DIMENSIONS: Final = 4
_WINDOW_BYTES: Final = 1 << 20
_CHUNK_ITEMS: Final = 1 << 20  # items dequantized at once: bounds the temporary memory beside the result

_SCALARS: Final[Mapping[int, np.dtype[Any]]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9

#: A metadata value: a number, a truth value, a text, texts, or a numpy array of numbers.
Value = int | float | bool | str | list[str] | npt.NDArray[Any]


@dataclass(frozen=True)
class _Tensor:
    type: GgmlType
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of one index on the first axis (a one-dimensional tensor is rows of one item)."""
        return math.prod(self.shape[1:]) * self.type.bytes // self.type.items

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.type.bytes // self.type.items


class GgufFile:
    """One GGUF file: ``metadata`` by key, and its tensors as a TensorSource under their GGUF names."""

    def __init__(self, file: RandomAccessFile) -> None:
        """Check the whole header; raises CheckpointError or UnsupportedError naming the file, key or tensor."""
        self._file = file
        self.name = file.name
        cursor = _Cursor(file)
        tensor_count, value_count = _read_start(cursor)
        self.metadata = _read_metadata(cursor, value_count)
        self._tensors = _read_tensors(cursor, tensor_count, self._alignment())

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.name}: general.alignment: must be a power of two up to 65536")
        return alignment

    def names(self) -> frozenset[str]:
        """Every tensor name."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``, slowest axis first; raises CheckpointError naming a missing tensor."""
        return self._tensor(name).shape

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """The tensor (or a contiguous slice of its first axis), dequantized to a fresh float32 array."""
        tensor = self._tensor(name)
        start, stop = row_range(tensor.shape, rows, name)
        if len(tensor.shape) < 2 and tensor.type.items > 1:
            return self._dequantize(tensor, 0, tensor.bytes).reshape(tensor.shape)[start:stop].copy()
        flat = self._dequantize(tensor, start * tensor.row_bytes, (stop - start) * tensor.row_bytes)
        return flat.reshape(stop - start, *tensor.shape[1:])

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.name}: tensor {name} is missing")
        return self._tensors[name]

    def _dequantize(self, tensor: _Tensor, begin: int, length: int) -> Float32:
        kind = tensor.type
        result = np.empty((length // kind.bytes, kind.items), np.float32)
        step = max(1, _CHUNK_ITEMS // kind.items)
        for block in range(0, len(result), step):
            part = result[block : block + step]
            raw = self._file.read_array(tensor.offset + begin + block * kind.bytes, len(part) * kind.bytes, np.uint8)
            with np.errstate(invalid="ignore", over="ignore"):  # a broken scale gives NaN, which parity refuses
                part[:] = kind.dequantize(raw.reshape(len(part), kind.bytes)).reshape(part.shape)
        return result.reshape(-1)


class _Cursor:
    """Reads the header forwards through a window, never past the file or ``MAX_HEADER_BYTES``."""

    def __init__(self, file: RandomAccessFile) -> None:
        self.file = file
        self.position = 0
        self._window = b""
        self._window_start = 0

    @property
    def left(self) -> int:
        """Bytes that the header may still take."""
        return min(self.file.size, MAX_HEADER_BYTES) - self.position

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise CheckpointError(
                f"{self.file.name}: a length of {length} bytes at {self.position}, {self.left} are left for the header"
            )
        start = self.position - self._window_start
        if start + length > len(self._window):
            self._window = self.file.read(self.position, min(max(length, _WINDOW_BYTES), self.left))
            self._window_start, start = self.position, 0
        self.position += length
        return self._window[start : start + length]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.u64()
        if length > limit:
            raise CheckpointError(f"{self.file.name}: a name of {length} bytes, the limit is {limit}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.file.name}: text at {self.position - length} is not UTF-8") from error


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    name = cursor.file.name
    if cursor.file.size < 24 or cursor.take(4) != b"GGUF":
        raise CheckpointError(f"{name}: not a GGUF file")
    version = cursor.u32()
    if version not in (2, 3):
        if version & 0xFFFF == 0:
            raise UnsupportedError(f"{name}: big-endian GGUF is not supported")
        raise UnsupportedError(f"{name}: GGUF version {version}: only 2 and 3 are supported")
    tensor_count, value_count = cursor.u64(), cursor.u64()
    if max(tensor_count, value_count) > _MAX_ENTRIES:
        raise CheckpointError(
            f"{name}: {tensor_count} tensors, {value_count} metadata keys; the limit is {_MAX_ENTRIES}"
        )
    return tensor_count, value_count


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.text(_MAX_NAME_BYTES)
        if key in metadata:
            raise CheckpointError(f"{cursor.file.name}: duplicate metadata key {quoted(key)}")
        metadata[key] = _read_value(cursor, cursor.u32(), f"{cursor.file.name}: {quoted(key)}")
    return metadata


def _read_value(cursor: _Cursor, kind: int, where: str) -> Value:
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        return _read_array(cursor, where)
    if kind not in _SCALARS:
        raise CheckpointError(f"{where}: unknown value type {kind}")
    dtype = _SCALARS[kind]
    raw = cursor.take(dtype.itemsize)
    if kind == _BOOL and raw not in (b"\0", b"\1"):
        raise CheckpointError(f"{where}: a truth value that is neither 0 nor 1")
    value: int | float | bool = np.frombuffer(raw, dtype)[0].item()
    return value


def _read_array(cursor: _Cursor, where: str) -> Value:
    kind, count = cursor.u32(), cursor.u64()
    if kind == _STRING:
        if count > min(_MAX_STRINGS, cursor.left // 8):
            raise CheckpointError(f"{where}: {count} texts are more than the file or the limit of {_MAX_STRINGS} holds")
        return [cursor.text() for _ in range(count)]
    if kind not in _SCALARS:
        raise UnsupportedError(f"{where}: arrays of value type {kind} are not supported")
    return np.frombuffer(cursor.take(count * _SCALARS[kind].itemsize), _SCALARS[kind])


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, _Tensor]:
    infos = [_read_tensor_info(cursor) for _ in range(count)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, _Tensor] = {}
    position = data_start
    for name, kind, shape, offset in sorted(infos, key=lambda info: info[3]):
        where = f"{cursor.file.name}: tensor {quoted(name)}"
        if name in tensors:
            raise CheckpointError(f"{where}: is there twice")
        tensor = _Tensor(kind, shape, data_start + offset)
        # Tensors follow each other without overlap or holes, each padded to the alignment, as llama.cpp requires too.
        if tensor.offset != position:
            raise CheckpointError(f"{where}: begins at {tensor.offset}, where {position} was expected")
        if tensor.offset + tensor.bytes > cursor.file.size:
            raise CheckpointError(f"{where}: ends beyond the file")
        position = tensor.offset + -(-tensor.bytes // alignment) * alignment
        tensors[name] = tensor
    return tensors


def _read_tensor_info(cursor: _Cursor) -> tuple[str, GgmlType, tuple[int, ...], int]:
    name = cursor.text(_MAX_NAME_BYTES)
    where = f"{cursor.file.name}: tensor {quoted(name)}"
    dimensions = cursor.u32()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: {dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
    sizes = [cursor.u64() for _ in range(dimensions)]  # fastest axis first
    number, offset = cursor.u32(), cursor.u64()
    if number not in READABLE:
        known = OTHER_NAMES.get(number, str(number))
        raise UnsupportedError(
            f"{where}: type {known}: only {', '.join(t.name for t in READABLE.values())} are supported"
        )
    kind = READABLE[number]
    if min(sizes) < 1 or math.prod(sizes) >= 1 << 63 or sizes[0] % kind.items:
        raise CheckpointError(f"{where}: sizes do not suit type {kind.name}")
    return name, kind, tuple(reversed(sizes)), offset
