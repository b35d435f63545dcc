"""The 8-bit linears against their definition in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from export.graph.builder import build_graph
from export.graph.writer import MODEL_FILE
from export.quantize.profile import PROFILES
from export.synthetic import TINY
from tests.unit.export.random_tensors import RandomTensors

Float32 = npt.NDArray[np.float32]
BATCH, LENGTH = 1, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 graph of random weights, in a file."""
    directory = tmp_path_factory.mktemp("int8")
    build_graph(TINY, RandomTensors(TINY), PROFILES["int8"], directory)
    return directory / MODEL_FILE


def values(model: Path, embedding: Float32, names: list[str]) -> list[npt.NDArray[Any]]:
    """Values of the graph, by name, when the embedding of the tokens is ``embedding`` [batch, sequence, hidden]."""
    proto = onnx.load(model)
    for node in [node for node in proto.graph.node if node.output[0] == "embedding.output"]:
        proto.graph.node.remove(node)
    shape = ["batch", "sequence", TINY.hidden_size]
    proto.graph.input.append(onnx.helper.make_tensor_value_info("embedding.output", onnx.TensorProto.FLOAT, shape))
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    past = np.zeros((BATCH, TINY.kv_heads, LENGTH, TINY.head_dim), np.float32)
    feed = {value.name: past for value in session.get_inputs() if value.name.startswith("past_key_values.")}
    feed |= {
        "input_ids": np.zeros((BATCH, LENGTH), np.int64),
        "embedding.output": embedding,
        "seqlens_k": np.array([LENGTH - 1], np.int32),
        "total_sequence_length": np.array(LENGTH, np.int32),
        "logit_positions": np.array([[0, LENGTH - 1]], np.int64),
    }
    return list(session.run(names, feed))


def quantized(x: Float32) -> tuple[npt.NDArray[np.uint8], Float32]:
    """Codes and scales as ``Activation`` defines them, the scales with a floor."""
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-28)) * np.float32(1 / 127)
    return (np.rint(x / scale) + 128).astype(np.uint8), scale


@pytest.mark.parametrize(
    "name",
    ["layers.0.input", "layers.0.attended", "layers.0.down_rotation.output.grouped", "wanted.attended"],
)
def test_tokens_are_quantized_by_their_own_largest_magnitude(model: Path, name: str) -> None:
    embedding = np.random.default_rng(1).standard_normal((BATCH, LENGTH, TINY.hidden_size), np.float32)
    embedding[:, 1] *= 1000
    embedding[:, 2] *= -0.001
    x, codes, scale = values(model, embedding, [name, f"{name}.codes", f"{name}.scale"])
    expected_codes, expected_scale = quantized(x.astype(np.float32))
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scale, expected_scale)
    assert np.ptp(expected_codes, axis=-1).min() > 100


def test_a_token_of_zeros_gives_zeros(model: Path) -> None:
    names = ["layers.0.input.codes", "layers.0.q_proj.output", "layers.0.v_proj.output", "logits"]
    codes, queries, kept, logits = values(model, np.zeros((BATCH, LENGTH, TINY.hidden_size), np.float32), names)
    assert (codes == 128).all() and (queries == 0).all() and (kept == 0).all() and np.isfinite(logits).all()


def test_the_groups_of_down_proj_add_up(model: Path) -> None:
    embedding = np.random.default_rng(2).standard_normal((BATCH, LENGTH, TINY.hidden_size), np.float32)
    name = "layers.0.down_proj"
    codes, scales, output = values(
        model,
        embedding,
        ["layers.0.down_rotation.output.codes", "layers.0.down_rotation.output.scale", f"{name}.3.total"],
    )
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    size = TINY.intermediate_size // 4
    expected = np.zeros((BATCH, LENGTH, TINY.hidden_size))
    for group in range(4):
        integers = codes[..., group * size : (group + 1) * size].astype(np.int64) - 128
        product = integers @ weights[f"{name}.{group}.weight"].astype(np.int64)
        expected += product * weights[f"{name}.{group}.scales"] * scales[..., group : group + 1]
    np.testing.assert_allclose(output, expected, atol=1e-5 * np.abs(expected).max())
