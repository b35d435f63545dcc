"""The checkpoint's matrices as the graph needs them: norms folded in and rotations merged, one slice at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.checkpoint.model import Float32, TensorSource
from export.quantize.profile import Profile
from export.quantize.rotation import Rotation
from export.spec import ModelSpec

#: Fixed seeds of the rotations' random signs: residual stream, attention heads, MLP.
_SEEDS = (20240400, 20240456, 20240516)


@dataclass(frozen=True)
class Matrix:
    """One linear's weight and what is merged into it; ``norm`` names the RMSNorm weight that multiplies its input."""

    tensor: str
    norm: str | None = None
    inputs: Rotation | None = None
    outputs: Rotation | None = None


class Weights:
    """Reads matrices with the profile's rotations merged; a profile without rotation gets them as they are."""

    def __init__(self, spec: ModelSpec, tensors: TensorSource, profile: Profile) -> None:
        self.spec = spec
        self._tensors = tensors
        self._rotate = profile.rotate
        self._residual = Rotation(spec.hidden_size, _SEEDS[0]) if profile.rotate else None
        self._head = Rotation(spec.head_dim, _SEEDS[1]) if profile.rotate else None
        self.down_rotation = _down_rotation(spec, profile)

    def __str__(self) -> str:
        if self._residual is None:
            return "none"
        parts = [f"residual {self._residual}", f"heads {self._head}"]
        return ", ".join(parts + ([f"down_proj {self.down_rotation}"] if self.down_rotation else []))

    def norm(self, name: str) -> Float32:
        """The RMSNorm weight [hidden] that stays in the graph: ones when it was folded into the following matrices."""
        return np.ones(self.spec.hidden_size, np.float32) if self._rotate else self._tensors.read(name)

    def embedding(self) -> Matrix:
        """The token embedding [vocabulary, hidden]: its rows enter the residual stream."""
        return Matrix("model.embed_tokens.weight", inputs=self._residual)

    def head(self) -> Matrix:
        """The LM head [vocabulary, hidden]."""
        return Matrix("lm_head.weight", norm="model.norm.weight", inputs=self._residual)

    def linear(self, layer: int, name: str) -> Matrix:
        """The matrix ``name`` (``q_proj``, ..., ``down_proj``) of ``layer``."""
        prefix = f"model.layers.{layer}."
        attention, mlp = f"{prefix}self_attn.{name}.weight", f"{prefix}mlp.{name}.weight"
        match name:
            case "q_proj" | "k_proj":
                return Matrix(attention, prefix + "input_layernorm.weight", inputs=self._residual)
            case "v_proj":
                return Matrix(attention, prefix + "input_layernorm.weight", inputs=self._residual, outputs=self._head)
            case "o_proj":
                return Matrix(attention, inputs=self._head, outputs=self._residual)
            case "gate_proj" | "up_proj":
                return Matrix(mlp, prefix + "post_attention_layernorm.weight", inputs=self._residual)
            case "down_proj":
                return Matrix(mlp, inputs=self.down_rotation, outputs=self._residual)
        raise KeyError(name)

    def rows(self, matrix: Matrix) -> int:
        """Output channels of ``matrix``."""
        return self._tensors.shape(matrix.tensor)[0]

    def columns(self, matrix: Matrix) -> int:
        """Input channels of ``matrix``."""
        return self._tensors.shape(matrix.tensor)[1]

    def read(self, matrix: Matrix, rows: slice | None = None) -> Float32:
        """Rows of the merged matrix, float32 [n, k]. Rows must hold whole output rotations."""
        weight = self._tensors.read(matrix.tensor, rows)
        if not self._rotate:
            return weight
        if matrix.norm is not None:
            weight *= self._tensors.read(matrix.norm)
        if matrix.outputs is not None:
            matrix.outputs.apply_to_columns(weight)
        if matrix.inputs is not None:
            matrix.inputs.apply_to_rows(weight)
        return weight


def _down_rotation(spec: ModelSpec, profile: Profile) -> Rotation | None:
    size = profile.down_rotation
    while size > 1 and spec.intermediate_size % size:
        size //= 2
    return Rotation(size, _SEEDS[2]) if profile.rotate and size > 1 else None
