"""A float32 Llama forward pass in plain numpy: the reference that every export is compared with.

It shares nothing with the graph but the rope tables, and reads each layer's weights once for all prompts, so a 1B
checkpoint needs the memory of one layer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from export.checkpoint.model import Float32, TensorSource
from export.graph.rope import rope_tables
from export.spec import ModelSpec

#: Rows of the LM head multiplied at a time.
_HEAD_ROWS = 16384


def reference_logits(
    spec: ModelSpec,
    tensors: TensorSource,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    head_token_ids: Sequence[int] | None = None,
) -> list[Float32]:
    """Logits float32 [len(wanted[i]), rows] of each prompt at its wanted positions.

    ``prompts`` are token ids without padding; ``head_token_ids`` limits the logits to those tokens, in that order.
    """
    spans = _spans(prompts)
    embedded = np.concatenate([_embed(tensors, prompt) for prompt in prompts])
    [(_, x)] = deque(_layers(spec, tensors, embedded, spans), maxlen=1)
    norm = tensors.read("model.norm.weight")
    picked = [_rms_norm(x[span][list(rows)], norm, spec.rms_norm_eps) for span, rows in zip(spans, wanted, strict=True)]
    return _head(spec, tensors, picked, head_token_ids)


def linear_inputs(
    spec: ModelSpec, tensors: TensorSource, prompts: Sequence[Sequence[int]]
) -> Iterator[dict[str, Float32]]:
    """Yields what enters the linears of each layer in turn, float32 [tokens of all prompts, channels].

    The keys are ``q_proj`` (whose input ``k_proj`` and ``v_proj`` share), ``o_proj``, ``gate_proj`` (and ``up_proj``)
    and ``down_proj``.
    """
    x = np.concatenate([_embed(tensors, prompt) for prompt in prompts])
    for inputs, _ in _layers(spec, tensors, x, _spans(prompts)):
        yield inputs


def _spans(prompts: Sequence[Sequence[int]]) -> list[slice]:
    ends = np.cumsum([len(prompt) for prompt in prompts])
    return [slice(end - len(prompt), end) for prompt, end in zip(prompts, ends, strict=True)]


def _layers(
    spec: ModelSpec, tensors: TensorSource, x: Float32, spans: Sequence[slice]
) -> Iterator[tuple[dict[str, Float32], Float32]]:
    """Yields each layer's inputs of linears and the residual stream after it."""
    cosines, sines = rope_tables(spec, max(span.stop - span.start for span in spans))
    for layer in range(spec.layers):
        weights, inputs = _LayerWeights(tensors, f"model.layers.{layer}."), dict[str, Float32]()
        inputs["q_proj"] = _rms_norm(x, weights["input_layernorm"], spec.rms_norm_eps)
        inputs["o_proj"] = _attention(spec, weights, inputs["q_proj"], spans, cosines, sines)
        x = x + inputs["o_proj"] @ weights["self_attn.o_proj"].T
        inputs["gate_proj"] = _rms_norm(x, weights["post_attention_layernorm"], spec.rms_norm_eps)
        inputs["down_proj"] = _mlp(weights, inputs["gate_proj"])
        x = x + inputs["down_proj"] @ weights["mlp.down_proj"].T
        yield inputs, x


class _LayerWeights:
    """The float32 matrices of one layer by short name, each read at its first use."""

    def __init__(self, tensors: TensorSource, prefix: str) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._read: dict[str, Float32] = {}

    def __getitem__(self, name: str) -> Float32:
        if name not in self._read:
            self._read[name] = self._tensors.read(f"{self._prefix}{name}.weight")
        return self._read[name]


def _embed(tensors: TensorSource, prompt: Sequence[int]) -> Float32:
    rows = [tensors.read("model.embed_tokens.weight", slice(token, token + 1)) for token in prompt]
    return np.concatenate(rows)


def _rms_norm(x: Float32, weight: Float32, epsilon: float) -> Float32:
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    normalized: Float32 = x / np.sqrt(mean_square + np.float32(epsilon))
    return normalized * weight


def _attention(
    spec: ModelSpec, weights: _LayerWeights, x: Float32, spans: Sequence[slice], cosines: Float32, sines: Float32
) -> Float32:
    """The input of o_proj. Linears take the tokens of all prompts together; attention is within each span."""
    queries = x @ weights["self_attn.q_proj"].T
    keys = x @ weights["self_attn.k_proj"].T
    values = x @ weights["self_attn.v_proj"].T
    attended = [_attend(spec, queries[span], keys[span], values[span], cosines, sines) for span in spans]
    return np.concatenate(attended)


def _attend(spec: ModelSpec, q: Float32, k: Float32, v: Float32, cosines: Float32, sines: Float32) -> Float32:
    """Causal attention with grouped queries over one prompt: [length, heads * head_dim]."""
    length = len(q)
    queries = _rotate_positions(_heads(q, spec.heads), cosines[:length], sines[:length])
    keys = _rotate_positions(_heads(k, spec.kv_heads), cosines[:length], sines[:length])
    values = _heads(v, spec.kv_heads)
    group = spec.heads // spec.kv_heads
    future = np.triu(np.full((length, length), -np.inf, dtype=np.float32), k=1)
    outputs = np.empty_like(queries)
    for head in range(spec.heads):
        scores = queries[head] @ keys[head // group].T / np.float32(math.sqrt(spec.head_dim)) + future
        outputs[head] = _softmax(scores) @ values[head // group]
    return outputs.transpose(1, 0, 2).reshape(length, -1)


def _heads(x: Float32, heads: int) -> Float32:
    """[length, heads * head_dim] -> [heads, length, head_dim]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _rotate_positions(x: Float32, cosines: Float32, sines: Float32) -> Float32:
    """Rotary position embedding, half-rotation layout: channel i pairs with channel i + head_dim / 2."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def _softmax(scores: Float32) -> Float32:
    weights: Float32 = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: Float32 = weights.sum(axis=-1, keepdims=True)
    return weights / total


def _mlp(weights: _LayerWeights, x: Float32) -> Float32:
    """The input of down_proj."""
    gate = x @ weights["mlp.gate_proj"].T
    up = x @ weights["mlp.up_proj"].T
    with np.errstate(over="ignore"):  # exp of a very negative gate is infinite, and SiLU then rightly 0
        silu = gate / (1 + np.exp(-gate))
    hidden: Float32 = silu * up
    return hidden


def _head(
    spec: ModelSpec, tensors: TensorSource, picked: Sequence[Float32], head_token_ids: Sequence[int] | None
) -> list[Float32]:
    stacked = np.concatenate(picked)
    logits = np.concatenate([stacked @ rows.T for rows in _head_rows(spec, tensors, head_token_ids)], axis=1)
    return np.split(logits, np.cumsum([len(rows) for rows in picked])[:-1])


def _head_rows(spec: ModelSpec, tensors: TensorSource, head_token_ids: Sequence[int] | None) -> Iterator[Float32]:
    if head_token_ids is not None:
        yield np.concatenate([tensors.read("lm_head.weight", slice(token, token + 1)) for token in head_token_ids])
        return
    for start in range(0, spec.vocab_size, _HEAD_ROWS):
        yield tensors.read("lm_head.weight", slice(start, min(start + _HEAD_ROWS, spec.vocab_size)))
