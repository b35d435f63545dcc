"""An adapter directory over a base checkpoint: LoRA weights merged on read, a guard's own head rows and prompt format.

The directory holds one or both of
- ``adapter_config.json`` + ``adapter_model.safetensors``: LoRA as saved by PEFT (github.com/huggingface/peft);
- ``guard.json`` (``{"format": GuardFormat, "head_token_ids": [...]}``) + ``guard_head.safetensors`` (tensor ``weight``
  [number of ids, hidden]): rows that replace the LM head's rows of those token ids.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from export.checkpoint.files import FileReader
from export.checkpoint.lora import Lora, read_lora
from export.checkpoint.model import Checkpoint, Float32, TensorSource
from export.checkpoint.safetensors import SafetensorsFile, row_range
from export.checkpoint.tensors import HEAD
from guard.bundle.guard_format import GuardFormat
from guard.errors import BundleError, CheckpointError, UnsupportedError

LORA_CONFIG_FILE: Final = "adapter_config.json"
LORA_FILE: Final = "adapter_model.safetensors"
GUARD_FILE: Final = "guard.json"
HEAD_FILE: Final = "guard_head.safetensors"


def apply_adapter(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """``checkpoint`` with the adapter in ``directory`` over it; its tensors are merged when they are read.

    A head-row replacement unties the head. Raises CheckpointError for broken or unfitting files, and UnsupportedError
    naming a feature (DoRA, biases, trained embeddings, other modules).
    """
    if not directory.is_dir():
        raise CheckpointError(f"adapter: {directory.name} is not a directory")
    reader = FileReader(directory)
    has_lora, has_guard = reader.exists(LORA_CONFIG_FILE), reader.exists(GUARD_FILE)
    if not has_lora and not has_guard:
        raise CheckpointError(f"adapter: {directory.name} has neither {LORA_CONFIG_FILE} nor {GUARD_FILE}")
    loras: dict[str, Lora] = {}
    if has_lora:
        if not reader.exists(LORA_FILE) and reader.exists("adapter_model.bin"):
            raise UnsupportedError(f"adapter_model.bin: pickle weights are not loaded; save the adapter as {LORA_FILE}")
        config = reader.read_json(LORA_CONFIG_FILE)
        loras = read_lora(config, SafetensorsFile(reader.open(LORA_FILE)), checkpoint.spec)
    guard_format, head = checkpoint.guard_format, _HeadRows(np.empty(0, np.int64), np.empty((0, 0), np.float32))
    if has_guard:
        guard_format, head = _read_guard(reader, checkpoint)
    spec = replace(checkpoint.spec, tied_embeddings=False) if len(head.token_ids) else checkpoint.spec
    return replace(
        checkpoint,
        spec=spec,
        tensors=_AdaptedTensors(checkpoint.tensors, loras, head),
        guard_format=guard_format,
        source=replace(checkpoint.source, adapter=dict(sorted(reader.hashes.items()))),
    )


class _HeadRows:
    """Rows [n, hidden] that stand in the LM head at ``token_ids`` [n], which ascend."""

    def __init__(self, token_ids: np.ndarray[Any, np.dtype[np.int64]], rows: Float32) -> None:
        order = np.argsort(token_ids)
        self.token_ids = token_ids[order]
        self._rows = rows[order]

    def put_into(self, block: Float32, start: int) -> None:
        """Replace rows of ``block``, which is the LM head from row ``start`` on."""
        first, last = np.searchsorted(self.token_ids, (start, start + len(block)))
        block[self.token_ids[first:last] - start] = self._rows[first:last]


class _AdaptedTensors:
    """A TensorSource that merges as it reads."""

    def __init__(self, base: TensorSource, loras: dict[str, Lora], head: _HeadRows) -> None:
        self._base = base
        self._loras = loras
        self._head = head

    def names(self) -> frozenset[str]:
        """Every tensor name."""
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``; raises CheckpointError naming a missing tensor."""
        return self._base.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """The merged tensor (or a contiguous slice of its first axis) as a fresh float32 array."""
        start, stop = row_range(self.shape(name), rows, name)
        values = self._base.read(name, rows)
        if name in self._loras:
            self._loras[name].add_to(values, slice(start, stop))
        if name == HEAD and len(self._head.token_ids):
            self._head.put_into(values, start)
        return values


def _read_guard(reader: FileReader, checkpoint: Checkpoint) -> tuple[GuardFormat, _HeadRows]:
    value = reader.read_json(GUARD_FILE)
    if value.keys() != {"format", "head_token_ids"}:
        raise CheckpointError(f"{GUARD_FILE}: expected the fields format and head_token_ids")
    try:
        guard_format = GuardFormat.from_json(value["format"], f"{GUARD_FILE}: format")
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    vocab_size, hidden_size = checkpoint.spec.vocab_size, checkpoint.spec.hidden_size
    _check_ids(list(guard_format.answer.head_token_ids()), vocab_size, f"{GUARD_FILE}: format.answer")
    ids = value["head_token_ids"]
    _check_ids(ids, vocab_size, f"{GUARD_FILE}: head_token_ids")
    if not ids:
        if reader.exists(HEAD_FILE):
            raise CheckpointError(f"{HEAD_FILE}: head_token_ids of {GUARD_FILE} says that there are no rows")
        return guard_format, _HeadRows(np.empty(0, np.int64), np.empty((0, hidden_size), np.float32))
    head = SafetensorsFile(reader.open(HEAD_FILE))
    if head.names() != {"weight"} or head.shape("weight") != (len(ids), hidden_size):
        raise CheckpointError(f"{HEAD_FILE}: expected the one tensor 'weight' [{len(ids)}, {hidden_size}]")
    return guard_format, _HeadRows(np.array(ids, np.int64), head.read("weight"))


def _check_ids(ids: Any, vocab_size: int, where: str) -> None:
    if not isinstance(ids, list) or not all(type(token_id) is int and 0 <= token_id < vocab_size for token_id in ids):
        raise CheckpointError(f"{where}: expected token ids below {vocab_size}")
    if len(set(ids)) != len(ids):
        raise CheckpointError(f"{where}: a token id is there twice")
