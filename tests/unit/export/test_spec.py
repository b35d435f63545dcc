from __future__ import annotations

from typing import Any

import pytest

from export.spec import Llama3RopeScaling, ModelSpec
from export.synthetic import LLAMA_3_2_1B, TINY
from guard.errors import CheckpointError, UnsupportedError

#: The config.json of meta-llama/Llama-3.2-1B-Instruct, as its model card's repository has it.
LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


def config(**changes: Any) -> dict[str, Any]:
    """``LLAMA_CONFIG`` with fields changed, or left out when the new value is ``...``."""
    return {name: value for name, value in (LLAMA_CONFIG | changes).items() if value is not ...}


def test_llama_3_2_1b() -> None:
    assert ModelSpec.from_config(LLAMA_CONFIG) == LLAMA_3_2_1B
    parameters = sum(
        shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in LLAMA_3_2_1B.expected_tensors().values()
    )
    assert parameters == 1_235_814_400


def test_the_newer_rope_spelling_means_the_same() -> None:
    parameters = LLAMA_CONFIG["rope_scaling"] | {"rope_theta": 500000.0}
    newer = config(rope_scaling=..., rope_theta=..., rope_parameters=parameters)
    assert ModelSpec.from_config(newer) == LLAMA_3_2_1B
    both = config(rope_parameters=parameters)
    assert ModelSpec.from_config(both) == LLAMA_3_2_1B


@pytest.mark.parametrize("scaling", [None, ..., {"rope_type": "default"}, {"type": "default"}])
def test_plain_rope(scaling: Any) -> None:
    assert ModelSpec.from_config(config(rope_scaling=scaling)).rope_scaling is None


def test_defaults_are_those_of_transformers() -> None:
    dropped = ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings")
    spec = ModelSpec.from_config(config(**dict.fromkeys(dropped, ...)))
    assert (spec.kv_heads, spec.head_dim, spec.rope_theta, spec.rms_norm_eps) == (32, 64, 10_000.0, 1e-6)
    assert spec.rope_scaling is None
    assert not spec.tied_embeddings
    assert "lm_head.weight" in spec.expected_tensors()


def test_head_dim_may_differ_from_hidden_over_heads() -> None:
    spec = ModelSpec.from_config(config(head_dim=128))
    assert spec.expected_tensors()["model.layers.0.self_attn.q_proj.weight"] == (4096, 2048)


def test_to_config_reads_back() -> None:
    for spec in (TINY, LLAMA_3_2_1B):
        assert ModelSpec.from_config(spec.to_config()) == spec


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architectures"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"model_type": "mllama"}, "model_type"),
        ({"model_type": ...}, "model_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"num_key_value_heads": 7}, "num_key_value_heads"),
        ({"head_dim": 63}, "head_dim"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "linear"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters"),
    ],
)
def test_unsupported_features_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        ModelSpec.from_config(config(**changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "2048"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"head_dim": ..., "hidden_size": 2049}, "hidden_size"),
        ({"rope_scaling": "llama3"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position_embeddings|low_freq_factor"),
        ({"rope_scaling": LLAMA_CONFIG["rope_scaling"] | {"high_freq_factor": 0.5}}, "high_freq_factor"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_scaling"),
    ],
)
def test_broken_fields_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        ModelSpec.from_config(config(**changes))


def test_a_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: expected an object"):
        ModelSpec.from_config([])


def test_messages_stay_short() -> None:
    with pytest.raises(UnsupportedError) as caught:
        ModelSpec.from_config(config(hidden_act="x" * 100_000))
    assert len(str(caught.value)) < 300


def test_rope_scaling_values_are_read() -> None:
    spec = ModelSpec.from_config(LLAMA_CONFIG)
    assert spec.rope_scaling == Llama3RopeScaling(32.0, 1.0, 4.0, 8192)
