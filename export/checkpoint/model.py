"""The one shape in which every kind of source checkpoint reaches the exporter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from export.spec import ModelSpec
from guard.bundle.guard_format import GuardFormat
from guard.bundle.manifest import GenerationDefaults, Source, Tokens

Float32 = npt.NDArray[np.float32]


class TensorSource(Protocol):
    """Reads tensors by Hugging Face name, one slice at a time, so that a 1B checkpoint never sits in memory whole."""

    def names(self) -> frozenset[str]:
        """Every tensor name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``; raises CheckpointError naming a missing tensor."""

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """The tensor (or a contiguous slice of its first axis) as a fresh float32 array."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: config checked, every expected tensor there with the right shape, files hashed.

    ``lm_head.weight`` can always be read: for tied embeddings it is ``model.embed_tokens.weight``.
    ``chat_template`` is the checkpoint's own Jinja text, if it has one; ``guard_format`` comes from an adapter, if any.
    """

    spec: ModelSpec
    tensors: TensorSource
    tokenizer_json: bytes
    tokens: Tokens
    chat_template: str | None
    generation: GenerationDefaults | None
    guard_format: GuardFormat | None
    source: Source
