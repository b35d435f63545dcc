"""Which files an ONNX graph wants to read beside itself, found without loading it.

Read from the protobuf wire format (https://protobuf.dev/programming-guides/encoding/) with the field numbers of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: the server has no package that parses ONNX but ONNX Runtime, and
that opens the files.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from guard.errors import BundleError

_MAX_DEPTH: Final = 64
_EXTERNAL_DATA: Final = 13
_KEY, _VALUE = 1, 2
#: Message to its fields that may hold tensors, by number, and the messages that those are.
_FIELDS: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {_EXTERNAL_DATA: "entry"},
}


def check_external_data(graph: Path, files: Collection[str]) -> None:
    """Raises BundleError naming ``graph`` when it is no protobuf message, or reads anything but ``files`` beside it."""
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            outside = any(location not in files for location in _locations(data, 0, len(data), "model", 0))
    except (ValueError, IndexError):
        raise BundleError(f"{graph.name}: not an ONNX graph") from None
    if outside:
        raise BundleError(f"{graph.name}: reads weights from a file that the manifest does not list")


def _locations(data: mmap.mmap, begin: int, end: int, kind: str, depth: int) -> Iterator[str]:
    """The locations of all tensors' external data in the message ``kind`` at ``data[begin:end]``."""
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    for number, start, stop in _parts(data, begin, end):
        inner = _FIELDS[kind].get(number)
        if inner == "entry":
            entry = {place: data[at:until] for place, at, until in _parts(data, start, stop)}
            if entry.get(_KEY) == b"location":
                yield entry.get(_VALUE, b"").decode()
        elif inner is not None:
            yield from _locations(data, start, stop, inner, depth + 1)


def _parts(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field; raises ValueError or IndexError for what is no message."""
    while begin < end:
        tag, begin = _varint(data, begin)
        match tag & 7:
            case 0:
                _, begin = _varint(data, begin)
            case 1:
                begin += 8
            case 5:
                begin += 4
            case 2:
                size, begin = _varint(data, begin)
                if size > end - begin:
                    raise ValueError("cut off")
                yield tag >> 3, begin, begin + size
                begin += size
            case _:
                raise ValueError("a group")
    if begin > end:
        raise ValueError("cut off")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
