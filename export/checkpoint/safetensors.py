"""Our own reader of the safetensors format (github.com/huggingface/safetensors, README "Format").

A file is: 8 bytes little-endian header length N, N bytes of JSON (tensor name -> dtype, shape, data_offsets), the data.
Nothing is allocated before the header has been proved consistent, and data is read by row slices. A hostile file can
make these functions raise CheckpointError or UnsupportedError, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from export.checkpoint.files import FileReader, RandomAccessFile, parse_json_object
from export.checkpoint.model import Float32
from export.messages import quoted
from guard.errors import CheckpointError, UnsupportedError

#: The reference implementation allows 100 MB; a real header has about 120 bytes a tensor, so this still fits 30,000
#: of them, and the Python objects of a hostile header stay small.
MAX_HEADER_BYTES: Final = 4 << 20
_MAX_DIMENSIONS: Final = 8
_CHUNK_ITEMS: Final = 4 << 20  # items converted at once: bounds the temporary memory beside the result

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"

#: How each readable dtype is stored; BF16 is read as its raw 16 bits.
_STORAGE: Final[Mapping[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file


class SafetensorsFile:
    """One safetensors file as a TensorSource of F32, F16 and BF16 tensors."""

    def __init__(self, file: RandomAccessFile) -> None:
        """Check the whole header; raises CheckpointError or UnsupportedError naming the file and tensor."""
        self._file = file
        self._entries = _read_header(file)

    def names(self) -> frozenset[str]:
        """Every tensor name."""
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``; raises CheckpointError naming a missing tensor."""
        return self._entry(name).shape

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """The tensor (or a contiguous slice of its first axis) as a fresh float32 array."""
        entry = self._entry(name)
        start, stop = row_range(entry.shape, rows, name)
        shape = entry.shape if rows is None else (stop - start, *entry.shape[1:])
        row_items = math.prod(entry.shape[1:])
        storage = _STORAGE[entry.dtype]
        offset = entry.offset + start * row_items * storage.itemsize
        return self._convert(offset, math.prod(shape), entry.dtype).reshape(shape)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self._file.name}: tensor {name} is missing")
        return self._entries[name]

    def _convert(self, offset: int, count: int, dtype: str) -> Float32:
        storage = _STORAGE[dtype]
        if dtype == "F32":
            return self._file.read_array(offset, count, storage).astype(np.float32, copy=False)
        result = np.empty(count, np.float32)
        for begin in range(0, count, _CHUNK_ITEMS):
            part = result[begin : begin + _CHUNK_ITEMS]
            raw = self._file.read_array(offset + begin * storage.itemsize, part.size, storage)
            if dtype == "BF16":
                np.left_shift(raw, 16, out=part.view(np.uint32), dtype=np.uint32)
            else:
                part[:] = raw
        return result


class ShardedSafetensors:
    """Several safetensors files behind ``model.safetensors.index.json``, as one TensorSource."""

    def __init__(self, reader: FileReader) -> None:
        """Open every shard; raises CheckpointError when index and shards do not say the same."""
        weight_map = _weight_map(reader)
        shards = {name: SafetensorsFile(reader.open(name)) for name in sorted(set(weight_map.values()))}
        self._owner = {tensor: shards[shard] for tensor, shard in weight_map.items()}
        for shard, file in shards.items():
            mapped = {tensor for tensor, owner in weight_map.items() if owner == shard}
            for tensor in sorted(mapped ^ file.names()):
                problem = "is not in the shard the index names" if tensor in mapped else "is not in the index"
                raise CheckpointError(f"{shard}: tensor {quoted(tensor)} {problem}")

    def names(self) -> frozenset[str]:
        """Every tensor name."""
        return frozenset(self._owner)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``; raises CheckpointError naming a missing tensor."""
        return self._shard(name).shape(name)

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """The tensor (or a contiguous slice of its first axis) as a fresh float32 array."""
        return self._shard(name).read(name, rows)

    def _shard(self, name: str) -> SafetensorsFile:
        if name not in self._owner:
            raise CheckpointError(f"{INDEX_FILE}: tensor {name} is missing")
        return self._owner[name]


def open_safetensors(reader: FileReader) -> SafetensorsFile | ShardedSafetensors:
    """The model weights of a checkpoint directory, one file or sharded; one file wins, as in transformers.

    Raises UnsupportedError naming a pickle file when that is all there is: unpickling runs code.
    """
    if reader.exists(SINGLE_FILE):
        return SafetensorsFile(reader.open(SINGLE_FILE))
    if reader.exists(INDEX_FILE):
        return ShardedSafetensors(reader)
    pickles = sorted(path.name for path in reader.directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl"))
    if pickles:
        raise UnsupportedError(f"{pickles[0]}: pickle weights are not loaded: unpickling runs code; use safetensors")
    raise CheckpointError(f"no {SINGLE_FILE} and no {INDEX_FILE} in {reader.directory.name}")


def row_range(shape: tuple[int, ...], rows: slice | None, name: str) -> tuple[int, int]:
    """``rows`` as a checked (start, stop) on the first axis of ``shape``; a scalar counts as one row."""
    length = shape[0] if shape else 1
    if rows is None:
        return 0, length
    if not shape or rows.step not in (None, 1):
        raise ValueError(f"{name}: rows must be a contiguous slice of a tensor with at least one axis")
    start, stop, _ = rows.indices(length)
    return start, max(start, stop)


def _read_header(file: RandomAccessFile) -> dict[str, _Entry]:
    if file.size < 8:
        raise CheckpointError(f"{file.name}: {file.size} bytes are too few for a safetensors file")
    length = int.from_bytes(file.read(0, 8), "little")
    limit = min(MAX_HEADER_BYTES, file.size - 8)
    if length > limit:
        raise CheckpointError(f"{file.name}: a header of {length} bytes, the limit is {limit}")
    header = parse_json_object(file.read(8, length), f"{file.name}: header")
    header.pop("__metadata__", None)
    data_start = 8 + length
    ends: list[tuple[int, int, str]] = []
    entries: dict[str, _Entry] = {}
    for name, value in header.items():
        where = f"{file.name}: tensor {quoted(name)}"
        dtype, shape, begin, end = _parse_entry(value, where)
        if end > file.size - data_start:
            raise CheckpointError(f"{where}: data_offsets end at {end}, there are {file.size - data_start} bytes")
        entries[name] = _Entry(dtype, shape, data_start + begin)
        ends.append((begin, end, where))
    _check_contiguous(ends, file.size - data_start, file.name)
    return entries


def _parse_entry(value: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _STORAGE:
        raise UnsupportedError(f"{where}: dtype {quoted(dtype)}: only {', '.join(_STORAGE)} are supported")
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: shape must be a list of at most {_MAX_DIMENSIONS} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets must be [begin, end]")
    needed = math.prod(shape) * _STORAGE[dtype].itemsize
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(f"{where}: {needed} bytes by shape and dtype, {offsets[1] - offsets[0]} by data_offsets")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_contiguous(spans: list[tuple[int, int, str]], data_bytes: int, file_name: str) -> None:
    """The format allows no holes and no overlap: the tensors, in order, are exactly the data."""
    position = 0
    for begin, end, where in sorted(spans):
        if begin != position:
            problem = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise CheckpointError(f"{where}: data_offsets begin at {begin}, not at {position}: it {problem}")
        position = end
    if position != data_bytes:
        raise CheckpointError(f"{file_name}: {data_bytes - position} bytes after the last tensor")


def _weight_map(reader: FileReader) -> dict[str, str]:
    weight_map = reader.read_json(INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map: expected an object")
    for shard in weight_map.values():
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and not set(shard) & set("/\\\0")
        if not plain or shard.startswith("."):
            raise CheckpointError(f"{INDEX_FILE}: shard {quoted(shard)} is not the plain name of a .safetensors file")
        if not reader.exists(shard):
            raise CheckpointError(f"{INDEX_FILE}: shard {quoted(shard)} is missing")
    return weight_map
