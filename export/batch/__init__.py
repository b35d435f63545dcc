"""Many exports from one YAML file: side by side within a memory bound, and resumable after a kill."""

from __future__ import annotations

from export.batch.config import Batch, Job, load_batch
from export.batch.plan import RunOptions
from export.batch.run import Terminated, plan_batch, run_batch

__all__ = ["Batch", "Job", "RunOptions", "Terminated", "load_batch", "plan_batch", "run_batch"]
