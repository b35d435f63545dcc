"""An engine for the benchmark's worker: a second for each token of a prompt, one stream at a time."""

from __future__ import annotations

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill, Unsupported


def load(task: str, weights: str, threads: int) -> Engine:
    """Prints, as engines do: the worker's protocol must not see it."""
    print("noise")
    return _Fake()


class _Fake:
    def classify(self, work: Classify) -> float:
        return float(len(work.rest))

    def prefill(self, work: Prefill) -> float:
        if not work.token_ids:
            raise ValueError("broken")
        return float(len(work.token_ids))

    def decode(self, work: Decode) -> float:
        if work.streams > 1:
            raise Unsupported("one at a time")
        return float(work.steps)
