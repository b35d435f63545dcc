"""Greedy text of the float32 SmolLM2 equals transformers' greedy text, token for token: alone, and in a crowd."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.checkpoint import open_checkpoint
from guard.bundle import open_bundle
from guard.engine.engine import Engine
from guard.engine.kv_cache import KvCache
from guard.engine.runner import Runner, load_runner
from guard.engine.settings import EngineSettings
from guard.generation import Generation
from guard.generator import Generator

from .generation_prompts import tasks

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

TOKENS = 32
#: Where the two best logits are nearer than this, either is right: the two programs round differently.
TIE = 1e-3

TASKS = tasks(TOKENS)

Texts = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def generator(smollm2_bundle: Callable[[str], Path]) -> Iterator[Generator]:
    with started(smollm2_bundle("none")) as generator:
        yield generator


@contextmanager
def started(directory: Path) -> Iterator[Generator]:
    bundle = open_bundle(directory)
    runner = load_runner(bundle, threads=2)
    generator = Generator(bundle, runner, Engine(runner, EngineSettings(max_active=16, kv_bytes=1 << 30), "test"))
    try:
        yield generator
    finally:
        generator.close()


@pytest.fixture(scope="module")
def prompts(generator: Generator) -> list[list[int]]:
    return [generator._prompt(task) for task in TASKS]


@pytest.fixture(scope="module")
def expected(gguf: Path, generator: Generator, prompts: list[list[int]]) -> Texts:
    """What transformers writes from the same prompts with the same weights."""
    stop = frozenset(generator.bundle.manifest.tokens.stop)
    source = open_checkpoint(str(gguf))
    config = transformers.LlamaConfig(**source.spec.to_config())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their deprecations
        model: Any = transformers.LlamaForCausalLM(config).eval()
        weights = {name: torch.from_numpy(source.tensors.read(name)) for name in source.spec.expected_tensors()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        model.tie_weights()
        assert set(missing) <= {"lm_head.weight"} and not unexpected
        return [_greedy(model, ids, stop) for ids in prompts]


def _greedy(model: Any, ids: list[int], stop: frozenset[int]) -> tuple[int, ...]:
    """Without the stop token."""
    text: list[int] = []
    past, piece = None, ids
    with torch.no_grad():
        while len(text) < TOKENS and not (text and text[-1] in stop):
            result = model(torch.tensor([piece]), past_key_values=past, use_cache=True)
            past, piece = result.past_key_values, [int(result.logits[0, -1].argmax())]
            text += piece
    return tuple(token for token in text if token not in stop)


def tokens(generation: Generation) -> tuple[int, ...]:
    """Without the stop token, which has no log probability."""
    return tuple(noted.token_id for noted in generation.choices[0].logprobs)


def differences(texts: Texts, expected: Texts, prompts: list[list[int]], runner: Runner) -> list[str]:
    """Where a text leaves the one that is expected, but for ties; each is printed."""
    found = []
    for number, (ours, theirs) in enumerate(zip(texts, expected, strict=True)):
        if ours == theirs:
            continue
        at = _common(ours, theirs)
        gap = _gap(runner, [*prompts[number], *theirs[:at]])
        print(f"prompt {number}: token {at} differs; the two best logits are {gap:.2e} apart")
        if gap >= TIE:
            found.append(f"prompt {number}, token {at}: {gap:.2e}")
    return found


def _gap(runner: Runner, ids: Sequence[int]) -> float:
    second, first = np.sort(runner.forward(KvCache(runner.shape, len(ids)), ids, [len(ids) - 1])[0])[-2:]
    return float(first - second)


def write(generator: Generator, together: bool) -> Texts:
    if not together:
        return [tokens(generator.generate(task)) for task in TASKS]
    tickets = [generator.submit(task, lambda delta: None) for task in TASKS]
    return [tokens(ticket.future.result(3600)) for ticket in tickets]


@pytest.mark.parametrize("together", [False, True])
def test_greedy_text(
    generator: Generator,
    prompts: list[list[int]],
    expected: Texts,
    smollm2_bundle: Callable[[str], Path],
    together: bool,
) -> None:
    """Failure test 22."""
    texts = write(generator, together)
    assert len(texts) == 50 and max(map(len, texts)) == TOKENS
    runner = load_runner(open_bundle(smollm2_bundle("none")), threads=2)
    assert differences(texts, expected, prompts, runner) == []


@pytest.mark.parametrize(("quantization", "identical", "prefix"), [("int8", 0.3, 12.0), ("int4", 0.02, 3.0)])
def test_quantized_text_agrees_for_a_while(
    smollm2_bundle: Callable[[str], Path],
    expected: Texts,
    quantization: str,
    identical: float,
    prefix: float,
    record_property: Any,
) -> None:
    """Loose bounds: one changed token changes all after it."""
    with started(smollm2_bundle(quantization)) as generator:
        texts = write(generator, together=True)
    same = float(np.mean([ours == theirs for ours, theirs in zip(texts, expected, strict=True)]))
    common = float(np.mean([_common(ours, theirs) for ours, theirs in zip(texts, expected, strict=True)]))
    print(f"{quantization}: {same:.2f} of texts identical, {common:.1f} tokens in common on average")
    record_property("identical", same)
    record_property("common_tokens", common)
    assert same >= identical and common >= prefix


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = list(zip(first, second, strict=False))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))
