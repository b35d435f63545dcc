"""Builds the whole Llama graph of the ``gqa`` interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from export.checkpoint.model import TensorSource
from export.graph.linears import Activation, Linears
from export.graph.rope import rope_tables
from export.graph.writer import MICROSOFT, GraphWriter
from export.quantize.calibration import Calibration
from export.quantize.profile import Profile
from export.quantize.weights import Weights
from export.spec import ModelSpec

#: Version of the graph's construction, in the model's ``producer_version``.
GRAPH_VERSION = "2"

Progress = Callable[[float], None]


def build_graph(
    spec: ModelSpec,
    tensors: TensorSource,
    profile: Profile,
    directory: Path,
    head_token_ids: Sequence[int] | None = None,
    progress: Progress = lambda fraction: None,
    calibration: Calibration | None = None,
) -> str:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``directory``; returns the description of the rotation.

    ``head_token_ids`` keeps only those rows of the LM head, in that order, in float32. ``progress`` gets 0..1.
    ``calibration`` makes 4-bit linears more accurate.
    Raises UnsupportedError when a matrix does not suit the profile's block size.
    """
    with GraphWriter(directory) as graph:
        builder = _LlamaBuilder(graph, spec, Weights(spec, tensors, profile), profile, calibration)
        builder.build(head_token_ids, progress)
        graph.save(GRAPH_VERSION)
        return str(builder.weights)


class _LlamaBuilder:
    def __init__(
        self,
        graph: GraphWriter,
        spec: ModelSpec,
        weights: Weights,
        profile: Profile,
        calibration: Calibration | None,
    ) -> None:
        self.graph = graph
        self.spec = spec
        self.profile = profile
        self.weights = weights
        self.linears = Linears(graph, weights, profile.largest_block, calibration)

    def build(self, head_token_ids: Sequence[int] | None, progress: Progress) -> None:
        spec, graph = self.spec, self.graph
        ids = graph.input("input_ids", np.int64, ["batch", "sequence"])
        graph.input("seqlens_k", np.int32, ["batch"])
        graph.input("total_sequence_length", np.int32, [])
        positions = graph.input("logit_positions", np.int64, ["batch", "wanted"])
        last_axis = graph.constant("last_axis", np.array([-1], np.int64))
        wanted = graph.node("Unsqueeze", [positions, last_axis], "wanted")

        residual = self.linears.embedding("embedding", ids, self.weights.embedding(), self.profile.embedding)
        scale = self._norm_weight("model.layers.0.input_layernorm.weight")
        x = graph.node(
            "SimplifiedLayerNormalization", [residual, scale], "layers.0.input", axis=-1, epsilon=spec.rms_norm_eps
        )
        for layer in range(spec.layers):
            progress(layer / (spec.layers + 1))
            name = f"layers.{layer}"
            attended = self._attention(layer, x)
            if layer == spec.layers - 1:
                # After the last attention only the wanted positions matter: the rest of the model skips all others.
                attended = graph.node("GatherND", [attended, wanted], "wanted.attended", batch_dims=1)
                residual = graph.node("GatherND", [residual, wanted], "wanted.residual", batch_dims=1)
                self.linears.tokens = "wanted"
            projected = self._linear(f"{name}.o_proj", self.linears.activation(attended), layer, ["o_proj"])
            norm = f"model.layers.{layer}.post_attention_layernorm.weight"
            x, residual = self._skip_norm(f"{name}.mlp", projected, residual, norm)
            following = (
                f"model.layers.{layer + 1}.input_layernorm.weight" if layer + 1 < spec.layers else "model.norm.weight"
            )
            x, residual = self._skip_norm(f"{name}.next", self._mlp(layer, x), residual, following)
        progress(spec.layers / (spec.layers + 1))
        self._head(x, head_token_ids)
        progress(1.0)

    def _attention(self, layer: int, x: str) -> str:
        spec, graph = self.spec, self.graph
        shape: list[str | int] = ["batch", spec.kv_heads, "capacity", spec.head_dim]
        past = [graph.input(f"past_key_values.{layer}.{kind}", np.float32, shape) for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        for name in present:
            graph.output(name, np.float32, shape)
        queries_keys_values = self._attention_inputs(layer, self.linears.activation(x))
        cosines, sines = self._rope()
        return graph.node(
            "GroupQueryAttention",
            [*queries_keys_values, *past, "seqlens_k", "total_sequence_length", cosines, sines],
            [f"layers.{layer}.attended", *present],
            domain=MICROSOFT,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )

    def _attention_inputs(self, layer: int, x: Activation) -> list[str]:
        """Queries, keys and values: of one packed linear when all have the same format, else of three."""
        names = ["q_proj", "k_proj", "v_proj"]
        if self.profile.v_proj == self.profile.linears:
            return [self._linear(f"layers.{layer}.qkv_proj", x, layer, names), "", ""]
        return [self._linear(f"layers.{layer}.{name}", x, layer, [name]) for name in names]

    def _mlp(self, layer: int, x: str) -> str:
        graph, name, form = self.graph, f"layers.{layer}", self.profile.linears
        activation = self.linears.activation(x)
        gate = self._linear(f"{name}.gate_proj", activation, layer, ["gate_proj"])
        # down_proj's own scales absorb the up branch's factor per token, so it need not be multiplied in here.
        late = form == "int8_rows" and self.profile.down_proj in ("int8_rows", "int8_groups")
        up = self.linears.apply(
            f"{name}.up_proj", activation, [self.weights.linear(layer, "up_proj")], form, scaled=not late
        )
        gated = graph.node("QuickGelu", [gate], f"{name}.silu", domain=MICROSOFT, alpha=1.0)
        hidden = graph.node("Mul", [gated, up], f"{name}.hidden")
        if self.weights.down_rotation is not None:
            hidden = self.linears.rotate(
                f"{name}.down_rotation", hidden, self.weights.down_rotation, self.spec.intermediate_size
            )
        inner = self.linears.activation(hidden, unscaled_by=activation.scale if late else None)
        return self.linears.apply(
            f"{name}.down_proj", inner, [self.weights.linear(layer, "down_proj")], self.profile.down_proj
        )

    def _head(self, x: str, head_token_ids: Sequence[int] | None) -> None:
        if head_token_ids is None:
            rows, form = self.spec.vocab_size, self.profile.head
            logits = self.linears.apply("head", self.linears.activation(x), [self.weights.head()], form)
        else:
            rows = len(head_token_ids)
            logits = self.linears.pruned("head", x, self.weights.head(), head_token_ids)
        self.graph.node("Identity", [logits], "logits")
        self.graph.output("logits", np.float32, ["batch", "wanted", rows])

    def _linear(self, name: str, x: Activation, layer: int, names: Sequence[str]) -> str:
        return self.linears.apply(
            name, x, [self.weights.linear(layer, item) for item in names], self.profile.form(names[0])
        )

    def _skip_norm(self, name: str, x: str, residual: str, norm: str) -> tuple[str, str]:
        """(RMSNorm(x + residual), x + residual)."""
        outputs = [f"{name}.input", "", "", f"{name}.residual"]
        inputs = [x, residual, self._norm_weight(norm)]
        epsilon = self.spec.rms_norm_eps
        self.graph.node("SkipSimplifiedLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=epsilon)
        return outputs[0], outputs[3]

    def _norm_weight(self, name: str) -> str:
        return self.graph.constant(name, self.weights.norm(name))

    def _rope(self) -> tuple[str, str]:
        names = ("rope.cosines", "rope.sines")
        if not self.graph.has(names[0]):
            for name, table in zip(names, rope_tables(self.spec, self.spec.max_positions), strict=True):
                self.graph.matrix(name, np.float32, table.shape).write_rows(0, table)
        return names
