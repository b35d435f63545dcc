from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.quantize.profile import PROFILES
from export.quantize.weights import Weights
from tests.unit.export.random_tensors import ODD, RandomTensors


def test_without_rotation_matrices_and_norms_are_as_they_are() -> None:
    tensors = RandomTensors(ODD)
    weights = Weights(ODD, tensors, PROFILES["none"])
    name = "model.layers.1.mlp.down_proj.weight"
    assert (weights.read(weights.linear(1, "down_proj")) == tensors.values[name]).all()
    assert (weights.norm("model.norm.weight") == tensors.values["model.norm.weight"]).all()
    assert str(weights) == "none" and weights.down_rotation is None


def test_with_rotation_the_norm_is_folded_into_what_follows() -> None:
    weights = Weights(ODD, RandomTensors(ODD), PROFILES["int8"])
    assert (weights.norm("model.norm.weight") == 1).all()
    assert weights.head().norm == "model.norm.weight"
    assert weights.linear(0, "gate_proj").norm == "model.layers.0.post_attention_layernorm.weight"
    assert weights.linear(0, "o_proj").norm is None and weights.embedding().norm is None


@pytest.mark.parametrize("name", ["q_proj", "gate_proj"])
def test_slices_are_slices_of_the_whole(name: str) -> None:
    weights = Weights(ODD, RandomTensors(ODD), PROFILES["int8"])
    matrix = weights.linear(2, name)
    whole = weights.read(matrix)
    assert whole.shape == (weights.rows(matrix), weights.columns(matrix))
    assert (weights.read(matrix, slice(5, 23)) == whole[5:23]).all()


def test_rotation_keeps_products_with_the_residual_stream() -> None:
    tensors = RandomTensors(ODD)
    weights = Weights(ODD, tensors, PROFILES["int8"])
    plain = tensors.values["lm_head.weight"] * tensors.values["model.norm.weight"]
    expected = tensors.values["model.embed_tokens.weight"] @ plain.T
    np.testing.assert_allclose(weights.read(weights.embedding()) @ weights.read(weights.head()).T, expected, atol=1e-4)


def test_the_online_rotation_shrinks_until_it_divides_the_width() -> None:
    spec = replace(ODD, intermediate_size=16 * 5)
    weights = Weights(spec, RandomTensors(spec), PROFILES["int8"])
    assert weights.down_rotation is not None and weights.down_rotation.size == 16
    assert str(weights) == "residual H32xDCT3, heads H16, down_proj H16"


def test_there_is_no_other_linear() -> None:
    with pytest.raises(KeyError, match="router"):
        Weights(ODD, RandomTensors(ODD), PROFILES["none"]).linear(0, "router")
