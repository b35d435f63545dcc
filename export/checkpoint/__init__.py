"""Source checkpoints: whatever they are on disk, the exporter sees ``export.checkpoint.model.Checkpoint``."""

from __future__ import annotations

from export.checkpoint.model import Checkpoint, TensorSource
from export.checkpoint.open import open_checkpoint

__all__ = ["Checkpoint", "TensorSource", "open_checkpoint"]
