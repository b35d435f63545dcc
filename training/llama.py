"""The Llama forward pass in torch, with LoRA in its upper layers: lower layers never need gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from export.checkpoint.model import Checkpoint
from export.spec import ModelSpec
from training.fused import RMS_EPSILON, LoraLinear, RmsNorm, Rotate, SwiGlu

#: Linears that read the same input run as one product.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
KeyValues = list[tuple[Any, Any]]


def module_name(layer: int, linear: str) -> str:
    """``model.layers.3.self_attn.q_proj`` and the like."""
    block = "self_attn" if linear in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"model.layers.{layer}.{block}.{linear}"


class Lora:
    """A and B of every linear from ``first_layer`` on: A uniform as in PEFT, B zero, so that training starts at the
    base model. ``parameters`` are float32 with gradients.
    """

    def __init__(self, spec: ModelSpec, first_layer: int, rank: int, alpha: int) -> None:
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        shapes = spec.expected_tensors()
        self.pairs: dict[str, tuple[Any, Any]] = {}
        for layer in range(first_layer, spec.layers):
            for linear in (linear for group in GROUPS for linear in group):
                name = module_name(layer, linear)
                out_size, in_size = shapes[f"{name}.weight"]
                a = torch.empty(rank, in_size)
                torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
                self.pairs[name] = (a.requires_grad_(), torch.zeros(out_size, rank).requires_grad_())

    @property
    def parameters(self) -> list[Any]:
        """Every A and B."""
        return [tensor for pair in self.pairs.values() for tensor in pair]


class Llama:
    """The base model with bfloat16 weights and a float32 residual stream."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        spec = checkpoint.spec
        if spec.rope_scaling is not None or spec.rms_norm_eps != np.float32(RMS_EPSILON):
            raise ValueError("training knows plain rotary positions and an RMSNorm epsilon of 1e-5 only")
        self.spec = spec
        read = checkpoint.tensors.read
        self.embedding = torch.from_numpy(read("model.embed_tokens.weight")).to(torch.bfloat16)
        self.final_norm = torch.from_numpy(read("model.norm.weight"))
        self._norms = []
        self._weights = []
        for layer in range(spec.layers):
            self._norms.append(
                [
                    torch.from_numpy(read(f"model.layers.{layer}.{norm}.weight"))
                    for norm in ("input_layernorm", "post_attention_layernorm")
                ]
            )
            self._weights.append(
                [
                    torch.from_numpy(np.concatenate([read(f"{module_name(layer, name)}.weight") for name in group])).to(
                        torch.bfloat16
                    )
                    for group in GROUPS
                ]
            )
        frequencies = 1.0 / spec.rope_theta ** (torch.arange(0, spec.head_dim, 2).float() / spec.head_dim)
        angles = torch.outer(torch.arange(4096).float(), frequencies)[None, :, None]
        self._cosine, self._sine = angles.cos(), angles.sin()

    def embed(self, token_ids: Any) -> Any:
        """[batch, tokens] -> float32 [batch, tokens, hidden]."""
        return torch.nn.functional.embedding(token_ids, self.embedding).float()

    def run(
        self, x: Any, layers: range, start: int = 0, past: KeyValues | None = None, lora: Lora | None = None
    ) -> tuple[Any, KeyValues]:
        """``x`` [batch, tokens, hidden] through ``layers``; its first token is at position ``start``.

        ``past``: keys and values [1, kv heads, start, head_dim] of those layers, shared by the rows. Rows are padded on
        the right, so that no real token sees padding. Returns x and this call's keys and values.
        """
        tokens = x.shape[1]
        mask = torch.full((tokens, start + tokens), float("-inf")).triu(start + 1)
        made = []
        for index, layer in enumerate(layers):
            x, key_values = self._layer(x, layer, start, None if past is None else past[index], mask, lora)
            made.append(key_values)
        return x, made

    def normed(self, x: Any) -> Any:
        """The final RMSNorm in float32: what the head's rows are multiplied with."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + RMS_EPSILON) * self.final_norm

    def _layer(
        self, x: Any, layer: int, start: int, past: tuple[Any, Any] | None, mask: Any, lora: Lora | None
    ) -> tuple[Any, tuple[Any, Any]]:
        spec, (batch, tokens, _) = self.spec, x.shape
        sizes = [spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim]
        h = RmsNorm.apply(x, self._norms[layer][0])
        q, k, v = (
            part.view(batch, tokens, -1, spec.head_dim) for part in self._linear(h, layer, 0, lora).split(sizes, -1)
        )
        cosine, sine = self._cosine[:, start : start + tokens], self._sine[:, start : start + tokens]
        q, k = (Rotate.apply(part, cosine, sine).transpose(1, 2) for part in (q, k))
        made = (k, v.transpose(1, 2))
        keys, values = made
        if past is not None:
            keys = torch.cat([past[0].expand(batch, -1, -1, -1), keys], 2)
            values = torch.cat([past[1].expand(batch, -1, -1, -1), values], 2)
        keys, values = (part.repeat_interleave(spec.heads // spec.kv_heads, 1) for part in (keys, values))
        attended = _attention(q, keys, values, mask).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + self._linear(attended, layer, 1, lora).float()
        h = RmsNorm.apply(x, self._norms[layer][1])
        activated = SwiGlu.apply(self._linear(h, layer, 2, lora))
        return x + self._linear(activated, layer, 3, lora).float(), made

    def _linear(self, x: Any, layer: int, group: int, lora: Lora | None) -> Any:
        weight = self._weights[layer][group]
        names = [module_name(layer, linear) for linear in GROUPS[group]]
        if lora is None or names[0] not in lora.pairs:
            return torch.nn.functional.linear(x, weight)
        pairs = [lora.pairs[name] for name in names]
        a = torch.cat([a for a, _ in pairs]) if len(pairs) > 1 else pairs[0][0]
        return LoraLinear.apply(x, weight, a, lora.scale, *[b for _, b in pairs])


def _attention(q: Any, keys: Any, values: Any, mask: Any) -> Any:
    """[batch, heads, tokens, head_dim]. Written out when there are gradients: torch's fused one is slow backward."""
    if not torch.is_grad_enabled():
        return torch.nn.functional.scaled_dot_product_attention(q, keys, values, mask.to(torch.bfloat16))
    scores = (q * q.shape[-1] ** -0.5 @ keys.transpose(-1, -2)).float() + mask
    return torch.softmax(scores, -1).to(torch.bfloat16) @ values


def features(
    model: Llama,
    lora: Lora,
    first_layer: int,
    prefix: Sequence[int],
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    gradients: bool,
) -> Any:
    """Normed features float32 [sum of positions, hidden] of ``sequences``, which all begin with ``prefix``.

    The prefix runs once for the whole batch.
    """
    start, width = len(prefix), max(map(len, sequences)) - len(prefix)
    padded = np.zeros((len(sequences), width), np.int64)
    for row, token_ids in enumerate(sequences):
        padded[row, : len(token_ids) - start] = token_ids[start:]
    lower, upper = range(first_layer), range(first_layer, model.spec.layers)
    with torch.no_grad():
        prefix_x, past = model.run(model.embed(torch.tensor([prefix])), lower)
        x, _ = model.run(model.embed(torch.from_numpy(padded)), lower, start, past)
    with torch.set_grad_enabled(gradients):
        _, past = model.run(prefix_x, upper, lora=lora)
        x, _ = model.run(x, upper, start, past, lora)
        rows = [row for row, wanted in enumerate(positions) for _ in wanted]
        columns = [position - start for wanted in positions for position in wanted]
        return model.normed(x[rows, columns])
