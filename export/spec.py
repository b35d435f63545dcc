"""What a Llama-architecture checkpoint is: the numbers of its config.json, checked, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from guard.bundle.manifest import ModelShape


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3's RoPE frequency scaling (``rope_type: llama3``), as in transformers' modeling_rope_utils."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class ModelSpec:
    """A checked Llama configuration: no biases, SiLU MLP, RMSNorm, rotary positions (half-rotation layout)."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3RopeScaling | None
    tied_embeddings: bool

    def shape(self) -> ModelShape:
        """The part of the spec that the runtime needs, for the bundle's manifest."""
        return ModelShape(
            architecture="llama",
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
        )

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor the checkpoint must hold, in Hugging Face naming ([out, in] linears)."""
        hidden, heads, kv = self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            tensors |= {
                prefix + "input_layernorm.weight": (hidden,),
                prefix + "self_attn.q_proj.weight": (heads, hidden),
                prefix + "self_attn.k_proj.weight": (kv, hidden),
                prefix + "self_attn.v_proj.weight": (kv, hidden),
                prefix + "self_attn.o_proj.weight": (hidden, heads),
                prefix + "post_attention_layernorm.weight": (hidden,),
                prefix + "mlp.gate_proj.weight": (self.intermediate_size, hidden),
                prefix + "mlp.up_proj.weight": (self.intermediate_size, hidden),
                prefix + "mlp.down_proj.weight": (hidden, self.intermediate_size),
            }
        tensors["model.norm.weight"] = (hidden,)
        if not self.tied_embeddings:
            tensors["lm_head.weight"] = (self.vocab_size, hidden)
        return tensors
