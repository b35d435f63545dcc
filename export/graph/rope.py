"""Rotary position tables, with Llama 3's frequency scaling."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from export.checkpoint.model import Float32
from export.spec import Llama3RopeScaling, ModelSpec

Float64 = npt.NDArray[np.float64]


def inverse_frequencies(spec: ModelSpec) -> Float32:
    """Radians per position of each channel pair, float32 [head_dim / 2]: theta^(-2i/d), scaled as Llama 3 does."""
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    frequencies = 1.0 / spec.rope_theta**exponents
    if spec.rope_scaling is not None:
        frequencies = _llama3(frequencies, spec.rope_scaling)
    return frequencies.astype(np.float32)


def rope_tables(spec: ModelSpec, positions: int) -> tuple[Float32, Float32]:
    """Cosine and sine tables, float32 [positions, head_dim / 2].

    The angles are products in float32, as in the implementations that the checkpoints were trained with: at position
    100,000 float32 is 0.004 radians coarse, and the exact angle would be the wrong one.
    """
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(spec)[None, :]
    return np.cos(angles.astype(np.float64)).astype(np.float32), np.sin(angles.astype(np.float64)).astype(np.float32)


def _llama3(frequencies: Float64, scaling: Llama3RopeScaling) -> Float64:
    """Long wavelengths are slowed by ``factor``, short ones kept, those between interpolated.

    Formula: transformers.modeling_rope_utils._compute_llama3_parameters; Meta's llama-models, apply_scaling.
    """
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_positions / wavelengths
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    scaled: Float64 = frequencies * ((1 - smooth) / scaling.factor + smooth)
    return scaled
