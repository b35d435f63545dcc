"""How much of the machine one engine may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """Limits of one engine (one model, one thread that steps it).

    ``threads``: ONNX Runtime's intra-op threads; 0 = the container's CPU quota. ``max_queued`` and ``max_active`` count
    jobs; ``kv_bytes`` bounds the KV caches of active jobs; ``prefix_bytes`` those kept for reuse. ``prefill_chunk``:
    the most tokens that a step may prefill; while other jobs are active, as many as take about ``step_s`` seconds.
    ``max_queued_tokens`` bounds the prompts and texts of the jobs that wait. A job is refused when its deadline leaves
    less than ``deadline_part`` times its wait and what it takes itself, as far as is known; 0 refuses none.
    """

    threads: int = 0
    max_queued: int = 64
    max_queued_tokens: int = 1 << 16
    max_active: int = 8
    kv_bytes: int = 512 << 20
    prefix_bytes: int = 64 << 20
    prefill_chunk: int = 256
    step_s: float = 0.15
    deadline_part: float = 2.0
