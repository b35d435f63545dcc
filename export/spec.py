"""What a Llama-architecture checkpoint is: the numbers of its config.json, checked, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from export.messages import quoted
from guard.bundle.manifest import ModelShape
from guard.errors import CheckpointError, UnsupportedError

#: Upper bounds of what one process could hold at all; a config beyond them is broken or hostile.
_LIMITS: Final = {
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "num_hidden_layers": 512,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "head_dim": 1_024,
    "vocab_size": 1_048_576,
    "max_position_embeddings": 16_777_216,
    "original_max_position_embeddings": 16_777_216,
}

#: Fields that switch on computation which the exporter does not have, with the only values that leave it off.
_OFF_VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}


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

    @classmethod
    def from_config(cls, config: Any, where: str = "config.json") -> ModelSpec:
        """Read a parsed ``config.json``; absent fields take the defaults of transformers' LlamaConfig.

        Raises CheckpointError naming a field that is missing, mistyped or out of bounds, and UnsupportedError naming a
        feature that the exporter does not have.
        """
        if not isinstance(config, dict):
            raise CheckpointError(f"{where}: expected an object")
        fields = _Config(config, where)
        _refuse_other_architectures(fields)
        _refuse_other_features(fields)
        heads = fields.size("num_attention_heads")
        hidden_size = fields.size("hidden_size")
        theta, scaling = _rope(fields)
        spec = cls(
            hidden_size=hidden_size,
            intermediate_size=fields.size("intermediate_size"),
            layers=fields.size("num_hidden_layers"),
            heads=heads,
            kv_heads=fields.size("num_key_value_heads", default=heads),
            head_dim=_head_dim(fields, hidden_size, heads),
            vocab_size=fields.size("vocab_size"),
            max_positions=fields.size("max_position_embeddings"),
            rms_norm_eps=fields.number("rms_norm_eps", default=1e-6, low=1e-12, high=1e-2),
            rope_theta=theta,
            rope_scaling=scaling,
            tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        )
        if spec.heads % spec.kv_heads:
            raise UnsupportedError(
                f"{where}: num_attention_heads {spec.heads} is no multiple of num_key_value_heads {spec.kv_heads}"
            )
        return spec

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

    def to_config(self) -> dict[str, Any]:
        """The ``config.json`` object that ``from_config`` reads back to this spec; it has no token ids and no dtype."""
        scaling = None
        if self.rope_scaling is not None:
            scaling = {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_max_positions,
            }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tied_embeddings,
        }


class _Config:
    """Typed, bounded reading of single config fields; ``None`` counts as absent, as in transformers."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def size(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where}: {name}: missing")
        if type(value) is not int:
            raise CheckpointError(f"{self.where}: {name}: expected an integer, found {type(value).__name__}")
        if not 1 <= value <= _LIMITS[name]:
            raise CheckpointError(f"{self.where}: {name}: must be between 1 and {_LIMITS[name]}")
        return value

    def number(self, name: str, *, default: float | None, low: float, high: float) -> float:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where}: {name}: missing")
        if type(value) not in (int, float):
            raise CheckpointError(f"{self.where}: {name}: expected a number, found {type(value).__name__}")
        if not low <= value <= high:  # also refuses NaN
            raise CheckpointError(f"{self.where}: {name}: must be between {low} and {high}")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise CheckpointError(f"{self.where}: {name}: expected a boolean, found {type(value).__name__}")
        return value

    def object(self, name: str) -> _Config | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.where}: {name}: expected an object, found {type(value).__name__}")
        return _Config(value, f"{self.where}: {name}")


def _refuse_other_architectures(fields: _Config) -> None:
    architectures = fields.get("architectures")
    if architectures is not None and architectures != ["LlamaForCausalLM"]:
        raise UnsupportedError(f"{fields.where}: architectures {quoted(architectures)}: only LlamaForCausalLM works")
    if fields.get("model_type") != "llama":
        raise UnsupportedError(f"{fields.where}: model_type {quoted(fields.get('model_type'))}: only 'llama' works")


def _refuse_other_features(fields: _Config) -> None:
    for name, allowed in _OFF_VALUES.items():
        value = fields.get(name)
        if value not in allowed:
            raise UnsupportedError(f"{fields.where}: {name} {quoted(value)} is not supported")
    activation = fields.get("hidden_act")
    if activation not in (None, "silu"):
        raise UnsupportedError(f"{fields.where}: hidden_act {quoted(activation)}: only 'silu' is supported")


def _head_dim(fields: _Config, hidden_size: int, heads: int) -> int:
    if fields.get("head_dim") is None and hidden_size % heads:
        raise CheckpointError(f"{fields.where}: hidden_size {hidden_size} is no multiple of {heads} heads")
    head_dim = fields.size("head_dim", default=max(1, hidden_size // heads))
    if head_dim % 2:
        raise UnsupportedError(f"{fields.where}: head_dim {head_dim} is odd; rotary positions need pairs")
    return head_dim


def _rope(fields: _Config) -> tuple[float, Llama3RopeScaling | None]:
    """``rope_theta`` and the scaling, from ``rope_parameters`` (newer files) or ``rope_theta`` + ``rope_scaling``."""
    parameters, scaling = fields.object("rope_parameters"), fields.object("rope_scaling")
    if parameters is None:
        return _theta(fields), None if scaling is None else _rope_scaling(scaling)
    if any(isinstance(value, dict) for value in parameters.values.values()):
        raise UnsupportedError(f"{parameters.where}: rotary settings per layer type are not supported")
    theta = _theta(fields if parameters.get("rope_theta") is None else parameters)
    read = _rope_scaling(parameters)
    if fields.get("rope_theta") is not None and _theta(fields) != theta:
        raise CheckpointError(f"{fields.where}: rope_theta and rope_parameters.rope_theta differ")
    if scaling is not None and _rope_scaling(scaling) != read:
        raise CheckpointError(f"{fields.where}: rope_scaling and rope_parameters differ")
    return theta, read


def _theta(fields: _Config) -> float:
    return fields.number("rope_theta", default=10_000.0, low=1.0, high=1e12)


def _rope_scaling(fields: _Config) -> Llama3RopeScaling | None:
    kind = fields.get("rope_type") or fields.get("type") or "default"  # "type" is the older spelling
    if kind == "default":
        return None
    if kind != "llama3":
        raise UnsupportedError(f"{fields.where}: rope type {quoted(kind)}: only 'default' and 'llama3' are supported")
    if fields.get("partial_rotary_factor") not in (None, 1):
        raise UnsupportedError(f"{fields.where}: partial_rotary_factor is not supported")
    scaling = Llama3RopeScaling(
        factor=fields.number("factor", default=None, low=1.0, high=1e6),
        low_freq_factor=fields.number("low_freq_factor", default=None, low=1e-6, high=1e6),
        high_freq_factor=fields.number("high_freq_factor", default=None, low=1e-6, high=1e6),
        original_max_positions=fields.size("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise CheckpointError(f"{fields.where}: high_freq_factor must be above low_freq_factor")
    return scaling
