"""The default quantization on real weights: SmolLM2-135M-Instruct keeps its distribution."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from export.checkpoint import open_checkpoint
from export.parity import kl_divergence
from export.pipeline import ExportRequest, export_model
from export.quantize.profile import PROFILES
from guard.bundle import open_bundle
from guard.engine.kv_cache import KvCache
from guard.engine.runner import Runner, load_runner
from guard.tokenizer import Segment, Tokenizer

Float32 = npt.NDArray[np.float32]


def gguf() -> Path | None:
    if path := os.environ.get("GUARDLET_SMOLLM2_GGUF"):
        return Path(path)
    return next(iter(sorted(Path(".cache").rglob("SmolLM2-135M-Instruct*.gguf"))), None)


GGUF = gguf()
pytestmark = pytest.mark.skipif(
    GGUF is None or not GGUF.exists(), reason="SmolLM2's GGUF is absent: set GUARDLET_SMOLLM2_GGUF, or run `make demo`"
)

#: The float32 model itself writes the evaluation text, greedily, from these.
QUESTIONS = (
    "Explain how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper.",
    "What are the causes of inflation?",
    "How do I cook rice so that it does not stick?",
    "Write a Python function that checks whether a word is a palindrome.",
    "Summarize how the heart pumps blood.",
    "Give me three ideas for a birthday party for a ten-year-old.",
    "Why is the sky blue and the sunset red?",
    "Write a polite email asking for a refund for a broken kettle.",
    "Describe the life cycle of a butterfly.",
    "What should I consider before I adopt a dog?",
    "Explain photosynthesis to a child.",
    "List the steps to change a flat tyre.",
    "Write a poem about the sea in winter.",
    "What is the difference between weather and climate?",
    "How does a refrigerator work?",
)
ANSWER_TOKENS = 200
MIN_TOKENS = 3000


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    return tokenizer.encode(
        [
            Segment("<|im_start|>user\n", trusted=True),
            Segment(question, trusted=False),
            Segment("<|im_end|>\n<|im_start|>assistant\n", trusted=True),
        ]
    )


def answer(runner: Runner, ids: list[int], stop: frozenset[int]) -> list[int]:
    cache = KvCache(runner.shape, len(ids) + ANSWER_TOKENS)
    tokens, piece = list(ids), ids
    while len(tokens) < len(ids) + ANSWER_TOKENS:
        token = int(runner.forward(cache, piece, [len(piece) - 1])[0].argmax())
        tokens.append(token)
        if token in stop:
            break
        piece = [token]
    return tokens


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("smollm2")
    for quantization in PROFILES:
        export_model(ExportRequest(str(GGUF), root / quantization, "instruct", quantization))
    return {name: root / name for name in PROFILES}


@pytest.fixture(scope="module")
def texts(bundles: dict[str, Path]) -> list[list[int]]:
    bundle = open_bundle(bundles["none"])
    tokenizer = Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control)
    runner = load_runner(bundle, threads=2)
    stop = frozenset(bundle.manifest.tokens.stop)
    written = [answer(runner, prompt(tokenizer, question), stop) for question in QUESTIONS]
    assert sum(len(text) for text in written) >= MIN_TOKENS
    return written


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Path], texts: list[list[int]]) -> list[Float32]:
    return logits(bundles["none"], texts)


def logits(bundle: Path, texts: list[list[int]]) -> list[Float32]:
    runner = load_runner(open_bundle(bundle), threads=2)
    return [runner.forward(KvCache(runner.shape, len(ids)), ids, range(len(ids))) for ids in texts]


@pytest.mark.parametrize(
    ("quantization", "max_kl", "min_top1"), [("int8", 0.01, 0.93), ("int4", 0.12, 0.82), ("int4-small", 0.25, 0.75)]
)
def test_quantization_keeps_the_distribution(
    bundles: dict[str, Path],
    texts: list[list[int]],
    expected: list[Float32],
    quantization: str,
    max_kl: float,
    min_top1: float,
    record_property: Any,
) -> None:
    actual = logits(bundles[quantization], texts)
    kl = np.concatenate([kl_divergence(first, second) for first, second in zip(expected, actual, strict=True)])
    top1 = np.concatenate(
        [first.argmax(axis=1) == second.argmax(axis=1) for first, second in zip(expected, actual, strict=True)]
    )
    record_property("mean_kl", float(kl.mean()))
    record_property("top1_agreement", float(top1.mean()))
    print(f"{quantization}: KL {kl.mean():.4f}, top-1 {top1.mean():.3f}, {len(kl)} positions")
    assert kl.mean() < max_kl
    assert top1.mean() > min_top1


def test_the_float32_graph_is_the_checkpoint(bundles: dict[str, Path]) -> None:
    assert GGUF is not None
    parity = open_bundle(bundles["none"]).manifest.parity
    assert parity is not None and parity.max_abs_logit_difference < 1e-3 and parity.positions > 100
    assert open_checkpoint(str(GGUF)).spec.hidden_size == 576
