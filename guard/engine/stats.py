"""What an engine has done so far, in plain numbers: others make metrics of them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

#: Upper bounds in seconds of the time a job waited before its first step.
WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Upper bounds of the number of sequences that took one decode step together.
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class Distribution:
    """How often values fell into each interval: ``counts[i]`` those up to ``bounds[i]`` and above the bound before it,
    the last one those above all bounds. ``total`` is the sum of the values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Tally:
    """Counts values into intervals. One thread adds at a time, any may read."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Distribution:
        """The counts so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


@dataclass
class Counters:
    """The engine's thread counts here; others read. Everything only grows."""

    steps: int = 0
    failed_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    batches: Tally = field(default_factory=lambda: Tally(BATCH_BOUNDS))


@dataclass(frozen=True)
class EngineStats:
    """One engine at one moment. ``steps`` are calls of the graph; ``failed_steps`` those that raised.

    ``prefill_tokens`` and ``decode_tokens`` went through the graph, drafts included. ``waits``: seconds from submission
    to the first step, or to the end of jobs that never had one. ``batches``: sequences in each decode step. Bytes are
    of KV cache: reserved now, reserved at most so far, and the limit.
    """

    queued: int
    active: int
    kv_bytes: int
    kv_bytes_peak: int
    kv_bytes_limit: int
    steps: int
    failed_steps: int
    prefill_tokens: int
    decode_tokens: int
    waits: Distribution
    batches: Distribution


@dataclass(frozen=True)
class PrefixStats:
    """Kept beginnings of prompts: look-ups that found something and that did not, tokens found, bytes of memory."""

    hits: int
    misses: int
    hit_tokens: int
    bytes: int
