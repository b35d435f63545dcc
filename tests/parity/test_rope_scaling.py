"""Llama 3's RoPE scaling against transformers', at the positions where it matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from export.graph.rope import inverse_frequencies, rope_tables
from export.spec import ModelSpec
from export.synthetic import LLAMA_3_2_1B, TINY

modeling_llama = pytest.importorskip("transformers.models.llama.modeling_llama")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SPECS = {
    "1b": LLAMA_3_2_1B,
    "8b": replace(
        LLAMA_3_2_1B,
        head_dim=128,
        rope_scaling=replace(LLAMA_3_2_1B.rope_scaling, factor=8.0),  # type: ignore[type-var]
    ),
    "tiny": TINY,
    "plain": replace(LLAMA_3_2_1B, rope_scaling=None),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_tables_equal_transformers_beyond_the_original_context(spec: ModelSpec) -> None:
    config = transformers.LlamaConfig(**spec.to_config())
    embedding: Any = modeling_llama.LlamaRotaryEmbedding(config)
    np.testing.assert_allclose(inverse_frequencies(spec), embedding.inv_freq.numpy(), rtol=3e-7)
    last = spec.max_positions
    picked = [0, 1, 255, 256, 4095, 8191, 8192, 8193, 20_000, 65_536, 100_000, last - 1]
    positions = sorted({position for position in picked if position < last})
    cosines, sines = embedding(torch.zeros(1), torch.tensor([positions]))
    ours = rope_tables(spec, last)
    half = spec.head_dim // 2
    for table, theirs in zip(ours, (cosines, sines), strict=True):
        # A frequency's last bit (6e-8 of it) is worth 6e-8 * 131072 = 0.008 radians at the end of the context.
        np.testing.assert_allclose(table[positions], theirs[0, :, :half].numpy(), atol=8e-3)
        early = [index for index, position in enumerate(positions) if position <= 20_000]
        np.testing.assert_allclose(table[positions][early], theirs[0, early, :half].numpy(), atol=1.3e-3)


def test_scaling_is_far_above_that_tolerance() -> None:
    """Without scaling the tables differ by whole units, so the test above would fail."""
    plain = rope_tables(SPECS["plain"], 8194)[0][8193]
    assert np.abs(rope_tables(LLAMA_3_2_1B, 8194)[0][8193] - plain).max() > 0.5
