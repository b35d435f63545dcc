from __future__ import annotations

import numpy as np

from export.reference import reference_logits
from export.synthetic import TINY
from tests.unit.export.random_tensors import ODD, RandomTensors


def test_later_tokens_change_nothing_before_them() -> None:
    tensors = RandomTensors(ODD)
    long, short = [5, 9, 250, 1, 77, 8], [5, 9, 250, 2]
    (first,) = reference_logits(ODD, tensors, [long], [range(6)])
    (second,) = reference_logits(ODD, tensors, [short], [range(4)])
    np.testing.assert_allclose(first[:3], second[:3], atol=1e-5)
    assert np.abs(first[3] - second[3]).max() > 0.1


def test_prompts_do_not_see_each_other() -> None:
    tensors, prompts = RandomTensors(TINY), [[1, 2, 3, 4], [9], [300, 7]]
    together = reference_logits(TINY, tensors, prompts, [[3, 0], [0], [1]])
    for prompt, wanted, logits in zip(prompts, [[3, 0], [0], [1]], together, strict=True):
        (alone,) = reference_logits(TINY, tensors, [prompt], [wanted])
        np.testing.assert_allclose(logits, alone, atol=1e-5)


def test_order_of_tokens_matters() -> None:
    tensors = RandomTensors(TINY)
    first, second = reference_logits(TINY, tensors, [[4, 5, 6], [5, 4, 6]], [[2], [2]])
    assert np.abs(first - second).max() > 1e-2


def test_chosen_rows_of_the_head() -> None:
    tensors = RandomTensors(ODD)
    (full,) = reference_logits(ODD, tensors, [[1, 2]], [[0, 1]])
    (chosen,) = reference_logits(ODD, tensors, [[1, 2]], [[0, 1]], [299, 0, 4])
    np.testing.assert_allclose(chosen, full[:, [299, 0, 4]], atol=1e-6)


def test_two_layers_by_hand() -> None:
    """One head and one token: attention returns the value itself, so the whole model is a few products."""
    from dataclasses import replace

    spec = replace(TINY, heads=1, kv_heads=1)
    values = RandomTensors(spec).values
    x = values["model.embed_tokens.weight"][3].astype(np.float64)

    def normed(
        vector: np.ndarray[tuple[int], np.dtype[np.float64]], name: str
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return vector / np.sqrt((vector @ vector) / len(vector) + spec.rms_norm_eps) * values[name]

    for layer in range(spec.layers):
        prefix = f"model.layers.{layer}."
        inner = normed(x, prefix + "input_layernorm.weight")
        x = x + values[prefix + "self_attn.o_proj.weight"] @ (values[prefix + "self_attn.v_proj.weight"] @ inner)
        inner = normed(x, prefix + "post_attention_layernorm.weight")
        gate = values[prefix + "mlp.gate_proj.weight"] @ inner
        gated = gate / (1 + np.exp(-gate)) * (values[prefix + "mlp.up_proj.weight"] @ inner)
        x = x + values[prefix + "mlp.down_proj.weight"] @ gated
    expected = values["lm_head.weight"] @ normed(x, "model.norm.weight")
    (logits,) = reference_logits(spec, RandomTensors(spec), [[3]], [[0]])
    np.testing.assert_allclose(logits[0], expected, atol=1e-5)
