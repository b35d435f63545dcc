"""Prefill in chunks, so that one long prompt never holds the engine for longer than a chunk."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import numpy.typing as npt

from guard.engine.kv_cache import KvCache
from guard.engine.runner import Runner

Float32 = npt.NDArray[np.float32]


def prefill(
    runner: Runner, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int], chunk: int
) -> Generator[None, None, Float32]:
    """Append ``token_ids`` to ``cache``, yielding between chunks of at most ``chunk`` tokens.

    Returns the logits float32 [len(wanted), rows] at the (ascending) indexes ``wanted`` of ``token_ids``.
    """
    parts: list[Float32] = []
    for start in range(0, len(token_ids), chunk):
        if start:
            yield
        piece = token_ids[start : start + chunk]
        here = [index - start for index in wanted if start <= index < start + len(piece)]
        # The graph wants at least one position; a chunk that needs none computes its last and drops it.
        logits = runner.forward(cache, piece, here or [len(piece) - 1])
        if here:
            parts.append(logits)
    return np.concatenate(parts) if parts else np.empty((0, len(runner.rows)), np.float32)
