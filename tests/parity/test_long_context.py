"""Llama 3's context to its end, 131,072 positions, through the exported graph: against transformers on a tiny model.

Attention over 100,000 tokens that were computed one by one would take minutes, so the caches of both are filled with
the same keys and values, and a few tokens are computed at their end. The keys are large: a query sees few of them, and
which ones depends on how it was rotated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.pipeline import ExportRequest, export_model
from export.spec import ModelSpec
from export.synthetic import LLAMA_3_2_1B, TINY, make_checkpoint
from guard.bundle import open_bundle
from guard.engine.engine import Engine
from guard.engine.kv_cache import Float32, KvCache
from guard.engine.runner import Runner, load_runner
from guard.engine.settings import EngineSettings
from guard.errors import InputTooLongError, InvalidInputError
from guard.generation import GenerateTask
from guard.generator import Generator

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SPEC = replace(
    TINY,
    max_positions=LLAMA_3_2_1B.max_positions,
    rope_theta=LLAMA_3_2_1B.rope_theta,
    rope_scaling=LLAMA_3_2_1B.rope_scaling,
)
NEW = 8
KEY_SIZE = 4.0
TOKEN_IDS = np.random.default_rng(1).integers(0, SPEC.vocab_size, 8300).tolist()
#: As in test_rope_scaling: a frequency's last bit is worth 0.008 radians at the end of the context, times KEY_SIZE.
TOLERANCE = 0.04


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("long") / "tiny", SPEC)


@pytest.fixture(scope="module")
def bundle_directory(checkpoint: Path) -> Path:
    out = checkpoint.parent / "out"
    export_model(ExportRequest(str(checkpoint), out, "instruct", "none"))
    return out


@pytest.fixture(scope="module")
def runner(bundle_directory: Path) -> Runner:
    return load_runner(open_bundle(bundle_directory), threads=2)


def reference(checkpoint: Path, spec: ModelSpec = SPEC) -> Any:
    """transformers' model of the checkpoint's weights, with the positions of ``spec``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their deprecations
        config = transformers.LlamaConfig(**spec.to_config())
        return transformers.LlamaForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32)


def filling(length: int) -> list[Float32]:
    """Key and value of each layer in turn, [1, kv_heads, length, head_dim]."""
    random = np.random.default_rng(length)
    arrays = [
        random.standard_normal((1, SPEC.kv_heads, length, SPEC.head_dim), np.float32) for _ in range(2 * SPEC.layers)
    ]
    for keys in arrays[::2]:
        keys *= KEY_SIZE
    return arrays


def ours(runner: Runner, length: int) -> Float32:
    cache = KvCache(runner.shape, length + NEW)
    for array, values in zip(cache.arrays, filling(length), strict=True):
        array[:, :, :length] = values
    cache.length = length
    first = runner.forward(cache, TOKEN_IDS[: NEW - 1], range(NEW - 1))
    return np.concatenate([first, runner.forward(cache, TOKEN_IDS[NEW - 1 : NEW], [0])])


def theirs(model: Any, length: int) -> Float32:
    cache = transformers.DynamicCache()
    arrays = [torch.from_numpy(array) for array in filling(length)]
    for layer in range(SPEC.layers):
        cache.update(arrays[2 * layer], arrays[2 * layer + 1], layer)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits: Float32 = model(torch.tensor([TOKEN_IDS[:NEW]]), past_key_values=cache).logits[0].numpy()
    return logits


@pytest.mark.parametrize("length", [100, 8188, 20_000, 100_000, SPEC.max_positions - NEW])
def test_positions_are_rotated_as_by_transformers(
    runner: Runner, checkpoint: Path, length: int, record_property: Any
) -> None:
    mine = ours(runner, length)
    difference = float(np.abs(mine - theirs(reference(checkpoint), length)).max())
    record_property("max_abs_logit_difference", difference)
    print(f"{length}: {difference:.2e}, logits spread {mine.std():.2f}")
    assert difference < TOLERANCE


@pytest.mark.parametrize("length", [8188, 100_000])
def test_the_comparison_would_show_another_rotation(runner: Runner, checkpoint: Path, length: int) -> None:
    unscaled = theirs(reference(checkpoint, replace(SPEC, rope_scaling=None)), length)
    assert np.abs(ours(runner, length) - unscaled).max() > 10 * TOLERANCE


def test_a_prompt_beyond_the_original_context(runner: Runner, checkpoint: Path) -> None:
    """Prefilled for real, in chunks."""
    cache = KvCache(runner.shape, len(TOKEN_IDS))
    for start in range(0, len(TOKEN_IDS), 1024):
        piece = TOKEN_IDS[start : start + 1024]
        logits = runner.forward(cache, piece, [len(piece) - 1])
    with torch.no_grad():
        expected = reference(checkpoint)(torch.tensor([TOKEN_IDS]), logits_to_keep=1).logits[0].numpy()
    assert np.abs(logits - expected).max() < 1e-3


@pytest.fixture
def generator(bundle_directory: Path, runner: Runner) -> Iterator[Generator]:
    generator = Generator(open_bundle(bundle_directory), runner, Engine(runner, EngineSettings(), "test"))
    yield generator
    generator.close()


def test_what_is_longer_than_the_context_is_refused_with_the_numbers(generator: Generator) -> None:
    """Failure test 12."""
    task = GenerateTask(prompt="7" * 400_000)
    tokens = generator.prompt_tokens(task)
    assert tokens > 131_072
    with pytest.raises(InputTooLongError, match=f"prompt: {tokens} tokens, the limit is 131071"):
        generator.generate(task)


def test_a_text_that_would_go_past_the_context_is_refused_with_the_numbers(generator: Generator) -> None:
    task = GenerateTask(prompt="7" * 1000, max_tokens=131_072)
    tokens = generator.prompt_tokens(task)
    with pytest.raises(InvalidInputError, match=rf"{tokens} prompt tokens \+ 131072 are more than the limit of 131072"):
        generator.generate(task)
