"""Writes an ONNX model whose weights stream into one external data file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Array = npt.NDArray[Any]

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
#: Offsets of tensors in the data file: whole pages, so that the runtime can map them.
ALIGNMENT = 4096
#: Columns copied at a time when a matrix is transposed.
_BAND = 64


@dataclass(frozen=True)
class Slot:
    """Room for one matrix [rows, columns] in the data file, to be filled in any order of pieces."""

    descriptor: int
    offset: int
    rows: int
    columns: int
    dtype: np.dtype[Any]

    def write_rows(self, start: int, piece: Array) -> None:
        """Write ``piece`` [n, columns] to the rows from ``start``."""
        data = np.ascontiguousarray(piece, dtype=self.dtype)
        if data.shape[1] != self.columns or start + data.shape[0] > self.rows:
            raise ValueError(f"{data.shape} does not fit at row {start} of {self.rows} x {self.columns}")
        self._write(data, self.offset + start * self.columns * self.dtype.itemsize)

    def write_columns(self, start: int, piece: Array) -> None:
        """Write ``piece`` [rows, n] to the columns from ``start``."""
        data = _c_contiguous(piece.astype(self.dtype, copy=False))
        if data.shape[0] != self.rows or start + data.shape[1] > self.columns:
            raise ValueError(f"{data.shape} does not fit at column {start} of {self.rows} x {self.columns}")
        if data.shape[1] == self.columns:
            self._write(data, self.offset)
        else:
            for row in range(self.rows):
                self._write(data[row], self.offset + (row * self.columns + start) * self.dtype.itemsize)

    def _write(self, data: Array, offset: int) -> None:
        view = data.reshape(-1).view(np.uint8).data
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written


class GraphWriter:
    """Collects nodes and initializers; ``save`` writes ``model.onnx`` beside the data file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = os.open(directory / DATA_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._end = 0
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[str | int]) -> str:
        """Declare a graph input; strings in ``shape`` are symbolic sizes."""
        self._inputs.append(helper.make_tensor_value_info(name, _element_type(np.dtype(dtype)), list(shape)))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: Sequence[str | int]) -> None:
        """Declare that the value ``name`` is a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, _element_type(np.dtype(dtype)), list(shape)))

    def constant(self, name: str, value: Array) -> str:
        """A small initializer stored in the model file itself; the same name is stored once."""
        if name not in self._initializers:
            tensor = helper.make_tensor(name, _element_type(value.dtype), value.shape, value.tobytes(), raw=True)
            self._initializers[name] = tensor
        return name

    def has(self, name: str) -> bool:
        """Whether there is an initializer called ``name``."""
        return name in self._initializers

    def matrix(self, name: str, dtype: type[np.generic], shape: Sequence[int]) -> Slot:
        """Reserve room for an initializer in the data file, as a matrix of ``shape[0]`` rows."""
        item = np.dtype(dtype)
        count = int(np.prod(shape))
        tensor = TensorProto(name=name, data_type=_element_type(item), dims=shape, data_location=TensorProto.EXTERNAL)
        fields = {"location": DATA_FILE, "offset": self._end, "length": count * item.itemsize}
        for key, value in fields.items():
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor
        slot = Slot(self._descriptor, self._end, shape[0], count // shape[0], item)
        self._end += -(-count * item.itemsize // ALIGNMENT) * ALIGNMENT
        return slot

    def node(
        self, operator: str, inputs: Sequence[str], outputs: str | Sequence[str], domain: str = "", **attributes: Any
    ) -> str:
        """Append a node named after its first output; returns that output's name."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self._nodes.append(helper.make_node(operator, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]

    def save(self, producer_version: str) -> None:
        """Write ``model.onnx`` and give the data file its final length."""
        os.ftruncate(self._descriptor, self._end)
        graph = helper.make_graph(self._nodes, "llama", self._inputs, self._outputs, list(self._initializers.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="guardlet",
            producer_version=producer_version,
        )
        (self._directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))


def _c_contiguous(matrix: Array) -> Array:
    """A C-contiguous copy made in bands: a plain copy of a transposed matrix misses the cache at every element."""
    if matrix.flags.c_contiguous:
        return matrix
    copy = np.empty(matrix.shape, matrix.dtype)
    for start in range(0, matrix.shape[1], _BAND):
        copy[:, start : start + _BAND] = matrix[:, start : start + _BAND]
    return copy


def _element_type(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))
