"""What every source of tensors has in common once its names are Hugging Face's: completeness, shapes, the tied head."""

from __future__ import annotations

from typing import Final

import numpy as np

from export.checkpoint.model import Float32, TensorSource
from export.messages import quoted
from export.spec import ModelSpec
from guard.errors import CheckpointError, UnsupportedError

EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
_COMPARED_ROWS: Final = 4096


class VerifiedTensors:
    """Exactly the tensors a spec expects, with their shapes; ``lm_head.weight`` is readable also when it is tied."""

    def __init__(self, source: TensorSource, spec: ModelSpec, where: str) -> None:
        """Raises CheckpointError for a missing or misshapen tensor, UnsupportedError for one nobody knows."""
        expected = spec.expected_tensors()
        # Old checkpoints carry inv_freq buffers, which only repeat what the config says.
        present = {name for name in source.names() if not name.endswith("rotary_emb.inv_freq")}
        for name, shape in expected.items():
            if name not in present:
                raise CheckpointError(f"{where}: tensor {name} is missing")
            if source.shape(name) != shape:
                raise CheckpointError(f"{where}: tensor {name} has shape {source.shape(name)}, config says {shape}")
        for name in sorted(present - expected.keys()):
            if name == HEAD and _same(source, HEAD, EMBEDDING):
                continue  # some tied checkpoints store the head too
            raise UnsupportedError(f"{where}: tensor {quoted(name)} is not part of a Llama model with this config")
        self._source = source
        self._shapes = expected
        self._alias = {HEAD: EMBEDDING} if spec.tied_embeddings else {}

    def names(self) -> frozenset[str]:
        """Every tensor name, ``lm_head.weight`` included."""
        return frozenset({*self._shapes, HEAD})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``; raises CheckpointError naming a missing tensor."""
        stored = self._alias.get(name, name)
        if stored not in self._shapes:
            raise CheckpointError(f"tensor {name} is missing")
        return self._shapes[stored]

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """The tensor (or a contiguous slice of its first axis) as a fresh float32 array."""
        self.shape(name)
        return self._source.read(self._alias.get(name, name), rows)


def _same(source: TensorSource, first: str, second: str) -> bool:
    if source.shape(first) != source.shape(second):
        return False
    for start in range(0, source.shape(first)[0], _COMPARED_ROWS):
        rows = slice(start, start + _COMPARED_ROWS)
        if not np.array_equal(source.read(first, rows), source.read(second, rows)):
            return False
    return True
