"""Texts through the float32 model, to see what enters each linear that is rounded to 4 bits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from export.checkpoint.model import Float32, TensorSource
from export.quantize.compensation import inverse_factors
from export.reference import linear_inputs
from export.spec import ModelSpec

_LINEAR = re.compile(r"model\.layers\.(\d+)\.\w+\.(\w+)\.weight")
#: Linears that share their input.
_SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


class Calibration:
    """The model runs one layer at a time, as the graph is built, so that only one layer's inputs are in memory."""

    def __init__(self, spec: ModelSpec, tensors: TensorSource, prompts: Sequence[Sequence[int]]) -> None:
        self._layers = linear_inputs(spec, tensors, prompts)
        self._layer = -1
        self._inputs: dict[str, Float32] = {}
        self._factors: tuple[str, Float32] | None = None

    def factors(self, tensor: str) -> Float32 | None:
        """``inverse_factors`` of what enters the linear with the weight ``tensor``; None for embedding and head.

        Layers must be asked for in their order.
        """
        match = _LINEAR.fullmatch(tensor)
        if match is None:
            return None
        while self._layer < int(match[1]):
            self._inputs, self._factors = next(self._layers), None
            self._layer += 1
        name = _SAME_INPUT.get(match[2], match[2])
        if self._factors is None or self._factors[0] != name:
            self._factors = (name, inverse_factors(self._inputs[name]))
        return self._factors[1]
