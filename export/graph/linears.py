"""Linear layers in every number format: the nodes that compute them and the weights they stream out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from export.checkpoint.model import Float32
from export.graph.writer import MICROSOFT, GraphWriter, Slot
from export.quantize.calibration import Calibration
from export.quantize.compensation import quantize_blocks_compensated
from export.quantize.formats import (
    SECOND_PLANE,
    block_size,
    largest_divisor,
    quantize_blocks,
    quantize_rows,
    quantize_rows_twice,
)
from export.quantize.profile import EmbeddingFormat, Format
from export.quantize.rotation import Rotation
from export.quantize.weights import Matrix, Weights
from guard.errors import UnsupportedError

#: Elements of a weight held in float32 at a time (64 MiB), unless an output rotation needs the whole matrix.
_CHUNK_ELEMENTS = 1 << 24
#: Groups of input channels in ``int8_groups``.
_GROUPS = 4


@dataclass(frozen=True)
class Activation:
    """A value [batch, sequence, channels] that feeds linears.

    ``codes`` (uint8) and ``scale`` [batch, sequence, 1] are its 8-bit form, computed when a linear wants it.
    """

    value: str
    codes: str
    scale: str
    unscaled_by: str | None = None


class Linears:
    """Builds linears on ``graph`` from ``weights``."""

    def __init__(
        self, graph: GraphWriter, weights: Weights, largest_block: int, calibration: Calibration | None
    ) -> None:
        self._graph = graph
        self._calibration = calibration
        self._weights = weights
        self._largest_block = largest_block
        self._quantized: set[str] = set()
        #: What the sequence axis of activations is called from here on; other tokens need other zero points.
        self.tokens = "sequence"

    def activation(self, value: str, unscaled_by: str | None = None) -> Activation:
        """Wrap ``value``; ``unscaled_by`` names a factor per token [batch, sequence, 1] that it still lacks."""
        return Activation(value, f"{value}.codes", f"{value}.scale", unscaled_by)

    def apply(self, name: str, x: Activation, matrices: Sequence[Matrix], form: Format, *, scaled: bool = True) -> str:
        """``x`` times the transposed matrices, side by side.

        Without ``scaled``, a product of ``int8_rows`` lacks the factor ``x.scale``.
        """
        match form:
            case "float32":
                return self._float32(name, x.value, matrices)
            case "int8_rows":
                return self._int8_rows(name, x, matrices, scaled)
            case "int16_rows":
                return self._int16_rows(name, x, matrices)
            case "int8_groups":
                return self._int8_groups(name, x, matrices)
            case "int8_blocks":
                return self._blocks(name, x.value, matrices, bits=8)
            case "int4_blocks":
                return self._blocks(name, x.value, matrices, bits=4)

    def pruned(self, name: str, x: str, matrix: Matrix, rows: Sequence[int]) -> str:
        """``x`` times the transposed ``rows`` of ``matrix``, in float32."""
        weight = self._graph.matrix(f"{name}.weight", np.float32, [len(rows), self._weights.columns(matrix)])
        for index, row in enumerate(rows):
            weight.write_rows(index, self._weights.read(matrix, slice(row, row + 1)))
        return self._graph.node("FusedMatMul", [x, f"{name}.weight"], f"{name}.output", domain=MICROSOFT, transB=1)

    def rotate(self, name: str, x: str, rotation: Rotation, channels: int) -> str:
        """Apply ``rotation`` to each run of ``rotation.size`` channels while the model runs."""
        size = rotation.size
        basis = self._graph.constant(f"{name}.basis", np.ascontiguousarray(rotation.matrix().T))
        split = self._graph.constant(f"{name}.split", np.array([0, 0, channels // size, size], np.int64))
        joined = self._graph.constant(f"{name}.join", np.array([0, 0, channels], np.int64))
        runs = self._graph.node("Reshape", [x, split], f"{name}.runs")
        rotated = self._graph.node("MatMul", [runs, basis], f"{name}.rotated")
        return self._graph.node("Reshape", [rotated, joined], f"{name}.output")

    def embedding(self, name: str, ids: str, matrix: Matrix, form: EmbeddingFormat) -> str:
        """Rows ``ids`` of ``matrix`` as float32 [batch, sequence, hidden]."""
        if form == "float32":
            return self._graph.node("Gather", [self._float_weight(name, [matrix], np.float32), ids], f"{name}.output")
        if form == "float16":
            rows = self._graph.node("Gather", [self._float_weight(name, [matrix], np.float16), ids], f"{name}.rows")
            return self._graph.node("Cast", [rows], f"{name}.output", to=TensorProto.FLOAT)
        block = self._block(name, matrix)
        codes, scales = self._block_weight(name, [matrix], bits=8, block=block, flat=True)
        return self._graph.node(
            "GatherBlockQuantized",
            [codes, ids, scales],
            f"{name}.output",
            domain=MICROSOFT,
            bits=8,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )

    def _float32(self, name: str, x: str, matrices: Sequence[Matrix]) -> str:
        weight = self._float_weight(name, matrices, np.float32)
        return self._graph.node("FusedMatMul", [x, weight], f"{name}.output", domain=MICROSOFT, transB=1)

    def _float_weight(self, name: str, matrices: Sequence[Matrix], dtype: type[np.floating[Any]]) -> str:
        rows, columns = self._shape(matrices)
        slot = self._graph.matrix(f"{name}.weight", dtype, [rows, columns])
        for start, piece in self._pieces(matrices):
            slot.write_rows(start, piece)
        return f"{name}.weight"

    def _int8_rows(self, name: str, x: Activation, matrices: Sequence[Matrix], scaled: bool) -> str:
        weight, scales = self._row_weight(name, *self._shape(matrices))
        for start, piece in self._pieces(matrices):
            integers, piece_scales = quantize_rows(piece)
            weight.write_columns(start, integers.T)
            scales.write_rows(start, piece_scales[:, None])
        self._quantize_tokens(x, self._shape(matrices)[1])
        product = self._row_product(name, x.codes)
        return self._graph.node("Mul", [product, x.scale], f"{name}.output") if scaled else product

    def _int16_rows(self, name: str, x: Activation, matrices: Sequence[Matrix]) -> str:
        first, first_scales = self._row_weight(f"{name}.first", *self._shape(matrices))
        second, second_scales = self._row_weight(f"{name}.second", *self._shape(matrices))
        for start, piece in self._pieces(matrices):
            integers, rest, piece_scales = quantize_rows_twice(piece)
            first.write_columns(start, integers.T)
            second.write_columns(start, rest.T)
            first_scales.write_rows(start, piece_scales[:, None])
            second_scales.write_rows(start, piece_scales[:, None] / np.float32(SECOND_PLANE))
        self._quantize_tokens(x, self._shape(matrices)[1])
        products = [self._row_product(f"{name}.{plane}", x.codes) for plane in ("first", "second")]
        total = self._graph.node("Add", products, f"{name}.product")
        return self._graph.node("Mul", [total, x.scale], f"{name}.output")

    def _row_weight(self, name: str, rows: int, columns: int) -> tuple[Slot, Slot]:
        """Room for an 8-bit weight [k, n] and its scales [n]."""
        weight = self._graph.matrix(f"{name}.weight", np.int8, [columns, rows])
        return weight, self._graph.matrix(f"{name}.scales", np.float32, [rows])

    def _row_product(self, name: str, codes: str) -> str:
        """The product of ``codes`` and the weight of ``name``, which still lacks the factor per token."""
        one = self._graph.constant("one", np.array(1, np.float32))
        zero_point = self._graph.constant("zero_point", np.array(128, np.uint8))
        inputs = [codes, f"{name}.weight", one, f"{name}.scales", zero_point]
        return self._graph.node("MatMulIntegerToFloat", inputs, f"{name}.product", domain=MICROSOFT)

    def _int8_groups(self, name: str, x: Activation, matrices: Sequence[Matrix]) -> str:
        """As ``_int8_rows``, but each token and each row has one scale for every group of input channels.

        A huge activation then costs precision in its own group only.
        """
        graph = self._graph
        rows, columns = self._shape(matrices)
        groups = largest_divisor(columns, _GROUPS)
        size = columns // groups
        room = [self._row_weight(f"{name}.{group}", rows, size) for group in range(groups)]
        for start, piece in self._pieces(matrices):
            for group, (weight, scales) in enumerate(room):
                integers, piece_scales = quantize_rows(piece[:, group * size : (group + 1) * size])
                weight.write_columns(start, integers.T)
                scales.write_rows(start, piece_scales[:, None])
        grouped = self._reshape(x.value, f"{x.value}.grouped", [0, 0, groups, size])
        self._quantize(grouped, size, f"{grouped}.codes", f"{grouped}.scale")
        codes = self._reshape(f"{grouped}.codes", x.codes, [0, 0, columns])
        scales_per_token = self._reshape(f"{grouped}.scale", f"{grouped}.scales", [0, 0, groups])
        if x.unscaled_by:
            scales_per_token = graph.node("Mul", [scales_per_token, x.unscaled_by], x.scale)
        code_names = [f"{name}.{group}.codes" for group in range(groups)]
        scale_names = [f"{name}.{group}.scale" for group in range(groups)]
        graph.node("Split", [codes], code_names, axis=-1, num_outputs=groups)
        graph.node("Split", [scales_per_token], scale_names, axis=-1, num_outputs=groups)
        total = ""
        for group in range(groups):
            product = self._row_product(f"{name}.{group}", code_names[group])
            term = graph.node("Mul", [product, scale_names[group]], f"{name}.{group}.output")
            # One by one: ONNX Runtime computes a Sum of several on a single thread.
            total = graph.node("Add", [total, term], f"{name}.{group}.total") if total else term
        return total

    def _reshape(self, value: str, output: str, shape: list[int]) -> str:
        name = "shape." + ".".join(map(str, shape))
        return self._graph.node("Reshape", [value, self._graph.constant(name, np.array(shape, np.int64))], output)

    def _quantize_tokens(self, x: Activation, channels: int) -> None:
        """The 8-bit form of ``x``, once for all linears that read it."""
        if x.codes in self._quantized:
            return
        self._quantized.add(x.codes)
        if x.unscaled_by is None:
            self._quantize(x.value, channels, x.codes, x.scale)
        else:
            self._quantize(x.value, channels, x.codes, f"{x.value}.own_scale")
            self._graph.node("Mul", [f"{x.value}.own_scale", x.unscaled_by], x.scale)

    def _quantize(self, value: str, channels: int, codes: str, scale: str) -> None:
        """Symmetric 8 bits along the last axis, scale = largest magnitude / 127. Tokens don't depend on their batch.

        Which nodes do it, and why no others: docs/decisions/0162-graph-nodes.md.
        """
        graph = self._graph
        axes = graph.constant("last_axis", np.array([-1], np.int64))
        step = graph.constant("step", np.array(1 / 127, np.float32))
        tiny = graph.constant("tiny", np.array(1e-28, np.float32))
        highest = graph.node("ReduceMax", [value, axes], f"{value}.highest", keepdims=1)
        lowest = graph.node("ReduceMin", [value, axes], f"{value}.lowest", keepdims=1)
        negated = graph.node("Neg", [lowest], f"{value}.negated")
        peak = graph.node("Max", [highest, negated, tiny], f"{value}.peak")
        graph.node("Mul", [peak, step], scale)
        zero_points = self._zero_points(scale, grouped=value.endswith(".grouped"))
        graph.node("QuantizeLinear", [value, scale, zero_points], codes, axis=-1, block_size=channels)

    def _zero_points(self, scale: str, grouped: bool) -> str:
        """128 in the shape of ``scale``, made once for all activations of this shape."""
        name = f"zero_points.{self.tokens}{'.grouped' if grouped else ''}"
        if name not in self._quantized:
            self._quantized.add(name)
            zero_point = self._graph.constant("zero_point", np.array(128, np.uint8))
            shape = self._graph.node("Shape", [scale], f"{name}.shape")
            self._graph.node("Expand", [zero_point, shape], name)
        return name

    def _blocks(self, name: str, x: str, matrices: Sequence[Matrix], bits: int) -> str:
        rows, columns = self._shape(matrices)
        block = self._block(name, matrices[0])
        codes, scales = self._block_weight(name, matrices, bits, block, flat=False)
        return self._graph.node(
            "MatMulNBits",
            [x, codes, scales],
            f"{name}.output",
            domain=MICROSOFT,
            N=rows,
            K=columns,
            bits=bits,
            block_size=block,
            accuracy_level=4,
        )

    def _block_weight(
        self, name: str, matrices: Sequence[Matrix], bits: int, block: int, flat: bool
    ) -> tuple[str, str]:
        rows, columns = self._shape(matrices)
        packed = block * bits // 8
        shape = [rows, columns // block * packed] if flat else [rows, columns // block, packed]
        codes = self._graph.matrix(f"{name}.weight", np.uint8, shape)
        scales = self._graph.matrix(f"{name}.scales", np.float32, [rows, columns // block])
        factors = self._calibration.factors(matrices[0].tensor) if self._calibration and bits == 4 else None
        for start, piece in self._pieces(matrices):
            if factors is None:
                piece_codes, piece_scales = quantize_blocks(piece, bits, block)
            else:
                piece_codes, piece_scales = quantize_blocks_compensated(piece, block, factors)
            codes.write_rows(start, piece_codes.reshape(len(piece), -1))
            scales.write_rows(start, piece_scales)
        return f"{name}.weight", f"{name}.scales"

    def _block(self, name: str, matrix: Matrix) -> int:
        columns = self._weights.columns(matrix)
        block = block_size(columns, self._largest_block)
        if not block:
            raise UnsupportedError(f"{name}: {columns} input channels, quantization in blocks needs a multiple of 16")
        return block

    def _shape(self, matrices: Sequence[Matrix]) -> tuple[int, int]:
        return sum(self._weights.rows(matrix) for matrix in matrices), self._weights.columns(matrices[0])

    def _pieces(self, matrices: Sequence[Matrix]) -> Iterator[tuple[int, Float32]]:
        """Yields (first row, float32 [n, k]) until all rows of all matrices were read."""
        offset = 0
        for matrix in matrices:
            rows = self._weights.rows(matrix)
            step = rows if matrix.outputs else max(1, _CHUNK_ELEMENTS // self._weights.columns(matrix))
            for start in range(0, rows, step):
                yield offset + start, self._weights.read(matrix, slice(start, min(start + step, rows)))
            offset += rows
