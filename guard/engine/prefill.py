"""Prefill in chunks, so that one long prompt never holds the engine for longer than a chunk."""

from __future__ import annotations

import numpy as np

from guard.engine.runner import Runner
from guard.engine.sequence import Float32, Forward

#: ONNX Runtime's attention takes the queries in blocks of 2 * head_dim (fewer where the L2 cache is small), which is a
#: multiple of this. A block of a single query takes another path through it, which rounds differently.
_QUERY_BLOCK = 32


class Prefill:
    """A ``Forward`` as far as it has been computed."""

    def __init__(self, request: Forward) -> None:
        self._request = request
        self._done = 0
        self._logits: list[Float32] = []

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return len(self._request.token_ids) - self._done

    def step(self, runner: Runner, size: int) -> int:
        """Compute the next chunk of about ``size`` tokens; returns how many it was."""
        request, start = self._request, self._done
        end = start + self._length(size)
        here = [index - start for index in request.wanted if start <= index < end]
        # The graph wants at least one position; a chunk that needs none computes its last and drops it.
        logits = runner.forward(request.cache, request.token_ids[start:end], here or [end - start - 1])
        if here:
            self._logits.append(logits)
        self._done = end
        return end - start

    def logits(self, runner: Runner) -> Float32:
        """What the request asked for, float32 [len(wanted), rows], once nothing is left."""
        return np.concatenate(self._logits) if self._logits else np.empty((0, len(runner.rows)), np.float32)

    def _length(self, size: int) -> int:
        """Of the next chunk: never such that a query is alone in its block, so that what a prompt gives does not depend
        on how it is cut. (A prompt of one token has no choice.)
        """
        size = max(size, 2)
        length = size if self.left > size + 1 else self.left
        return length - 2 if length > 1 and length % _QUERY_BLOCK == 1 else length
