"""Fakes for tests of code that uses this library: no model, no ONNX Runtime, answers that a test chooses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from guard.bundle.manifest import ModelShape
from guard.engine.decode_batch import DecodeBatch
from guard.engine.kv_cache import KvCache

Float32 = npt.NDArray[np.float32]
#: All tokens of the sequence so far to the logits float32 [rows] after the last of them.
Answers = Callable[[tuple[int, ...]], Float32]

TINY_SHAPE = ModelShape(
    architecture="llama",
    hidden_size=8,
    intermediate_size=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocab_size=512,
    max_positions=4096,
)


class FakeRunner:
    """A ``guard.engine.runner.Runner`` that asks ``answers`` for its logits and keeps the token ids in the KV cache
    itself, so that prefix reuse, rollback and mixed-up caches show in its answers. ``steps`` counts forward calls,
    ``tokens`` what they were given. ``step_seconds`` is what each takes, and may be changed.
    """

    def __init__(
        self,
        answers: Answers,
        *,
        shape: ModelShape = TINY_SHAPE,
        rows: Mapping[int, int] | None = None,
        step_seconds: float = 0.0,
    ) -> None:
        self.shape = shape
        self.rows = dict(rows) if rows is not None else {token: token for token in range(shape.vocab_size)}
        self.steps = 0
        self.tokens = 0
        self._answers = answers
        self.step_seconds = step_seconds

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        self.steps += 1
        self.tokens += len(token_ids)
        time.sleep(self.step_seconds)
        start = cache.length
        cache.grow_to(start + len(token_ids))
        memory = cache.arrays[0][0, 0, :, 0]
        memory[start : start + len(token_ids)] = token_ids
        cache.length = start + len(token_ids)
        seen = tuple(int(token) for token in memory[: cache.length])
        return np.stack([self._answers(seen[: start + index + 1]) for index in wanted])

    def decode(self, batch: DecodeBatch, token_ids: Sequence[int]) -> Float32:
        steps = zip(batch.caches, token_ids, strict=True)
        return np.concatenate([self.forward(cache, [token], [0]) for cache, token in steps])


def logits_for(scores: Mapping[int, float], rows: Mapping[int, int]) -> Float32:
    """Logits float32 [rows] with the given scores by token id; -30 elsewhere."""
    logits = np.full(len(rows), -30.0, np.float32)
    for token, score in scores.items():
        logits[rows[token]] = score
    return logits


def write_byte_tokenizer(path: Path, control: Sequence[str]) -> dict[str, int]:
    """Write a tokenizer.json with one token a byte (ids 0..255) and ``control`` tokens from 256 on; returns their
    ids.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HfTokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    tokenizer.save(str(path))
    return {text: tokenizer.token_to_id(text) for text in control}
