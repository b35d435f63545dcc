from __future__ import annotations

import numpy as np

from export.quantize.calibration import Calibration
from export.quantize.compensation import inverse_factors
from export.reference import linear_inputs
from tests.unit.export.random_tensors import ODD, RandomTensors

PROMPTS = [[1, 2, 3, 4, 5], [7, 8, 9]]


def test_factors_are_those_of_the_linear_that_was_asked_for() -> None:
    tensors = RandomTensors(ODD)
    calibration = Calibration(ODD, tensors, PROMPTS)
    layers = list(linear_inputs(ODD, tensors, PROMPTS))
    assert calibration.factors("model.embed_tokens.weight") is None
    for layer, inputs in enumerate(layers):
        for part, linear, source in (
            ("self_attn", "q_proj", "q_proj"),
            ("self_attn", "k_proj", "q_proj"),
            ("self_attn", "o_proj", "o_proj"),
            ("mlp", "gate_proj", "gate_proj"),
            ("mlp", "up_proj", "gate_proj"),
            ("mlp", "down_proj", "down_proj"),
        ):
            factors = calibration.factors(f"model.layers.{layer}.{part}.{linear}.weight")
            assert factors is not None
            np.testing.assert_array_equal(factors, inverse_factors(inputs[source]))
    assert calibration.factors("lm_head.weight") is None


def test_inputs_are_what_the_linears_get() -> None:
    """The first layer's, computed here by other means."""
    tensors = RandomTensors(ODD)
    inputs = next(linear_inputs(ODD, tensors, PROMPTS))
    x = tensors.values["model.embed_tokens.weight"][[1, 2, 3, 4, 5, 7, 8, 9]].astype(np.float64)
    normed = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + ODD.rms_norm_eps)
    normed *= tensors.values["model.layers.0.input_layernorm.weight"]
    np.testing.assert_allclose(inputs["q_proj"], normed, atol=1e-5)
    assert inputs["o_proj"].shape == (8, ODD.heads * ODD.head_dim)
    assert inputs["down_proj"].shape == (8, ODD.intermediate_size)
