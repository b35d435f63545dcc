"""On real kernels, a row of a batch computes what it computes alone, to the bit; and so does a prompt in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from export.pipeline import ExportRequest, export_model
from export.synthetic import make_checkpoint
from guard.bundle import open_bundle
from guard.engine.decode_batch import DecodeBatch
from guard.engine.kv_cache import Float32, KvCache
from guard.engine.prefill import Prefill
from guard.engine.runner import Runner, load_runner
from guard.engine.sequence import Forward

LENGTHS = (3, 17, 64, 65, 120, 7, 40, 200)
STEPS = 6

RANDOM = np.random.default_rng(3)


def prompts(vocab_size: int) -> list[list[int]]:
    return [RANDOM.integers(0, vocab_size, length).tolist() for length in LENGTHS]


def prefilled(runner: Runner, token_ids: Sequence[int]) -> tuple[KvCache, Float32]:
    cache = KvCache(runner.shape, len(token_ids) + STEPS)
    return cache, runner.forward(cache, token_ids, [len(token_ids) - 1])[0]


def decoded(runner: Runner, groups: list[list[list[int]]]) -> list[list[Float32]]:
    """The logits of ``STEPS`` greedy steps for each prompt; those of a group decode together."""
    texts = []
    for group in groups:
        batch = DecodeBatch(runner.shape)
        caches, logits = zip(*(prefilled(runner, token_ids) for token_ids in group), strict=True)
        rows = [[first] for first in logits]
        for _ in range(STEPS):
            batch.set(list(caches))
            place = [batch.caches.index(cache) for cache in caches]
            tokens = [0] * len(caches)
            for index, row in enumerate(place):
                tokens[row] = int(rows[index][-1].argmax())
            answer = runner.decode(batch, tokens)
            for index, row in enumerate(place):
                rows[index].append(answer[row])
        texts += rows
    return texts


def check_batches(runner: Runner) -> None:
    group = prompts(runner.shape.vocab_size)
    alone = decoded(runner, [[token_ids] for token_ids in group])
    for size in (2, 3, 8):
        together = decoded(runner, [group[start : start + size] for start in range(0, len(group), size)])
        for index, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"prompt {index} in a batch of {size}")


def in_chunks(runner: Runner, token_ids: Sequence[int], size: int) -> tuple[KvCache, Float32]:
    cache = KvCache(runner.shape, len(token_ids))
    prefill = Prefill(Forward(cache, token_ids, [len(token_ids) - 1]))
    while prefill.left:
        prefill.step(runner, size)
    return cache, prefill.logits(runner)[0]


def check_chunks(runner: Runner) -> None:
    """Whatever the size of the chunks, also where a single query would be left for the kernel's last block."""
    token_ids = RANDOM.integers(0, runner.shape.vocab_size, 257).tolist()
    expected_cache, expected = in_chunks(runner, token_ids, len(token_ids))
    for size in (2, 16, 33, 129, 255, 256):
        cache, logits = in_chunks(runner, token_ids, size)
        np.testing.assert_array_equal(logits, expected, err_msg=f"chunks of {size}")
        for ours, theirs in zip(cache.arrays, expected_cache.arrays, strict=True):
            np.testing.assert_array_equal(ours[:, :, : len(token_ids)], theirs[:, :, : len(token_ids)])


@pytest.fixture(scope="module", params=["none", "int8", "int4"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    root: Path = tmp_path_factory.mktemp("tiny")
    export_model(ExportRequest(str(make_checkpoint(root / "source")), root / "out", "instruct", request.param))
    return load_runner(open_bundle(root / "out"), threads=2)


@pytest.fixture(scope="module", params=["none", "int8", "int4"])
def smollm2(request: pytest.FixtureRequest, smollm2_bundle: Callable[[str], Path]) -> Runner:
    return load_runner(open_bundle(smollm2_bundle(request.param)), threads=2)


def test_tiny_batches(tiny: Runner) -> None:
    check_batches(tiny)


def test_tiny_chunks(tiny: Runner) -> None:
    check_chunks(tiny)


def test_smollm2_batches(smollm2: Runner) -> None:
    """Failure test 22."""
    check_batches(smollm2)


def test_smollm2_chunks(smollm2: Runner) -> None:
    check_chunks(smollm2)
