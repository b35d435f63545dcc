"""Choosing the reader for a source: a directory, a GGUF file, or a model on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from export.checkpoint.adapter import apply_adapter
from export.checkpoint.gguf import open_gguf
from export.checkpoint.hub import download
from export.checkpoint.huggingface import CONFIG_FILE, open_directory
from export.checkpoint.model import Checkpoint
from export.messages import quoted
from guard.errors import CheckpointError, InvalidInputError

#: ``organization/name`` on the hub.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def open_checkpoint(source: str, *, revision: str | None = None, adapter: Path | None = None) -> Checkpoint:
    """Open and verify ``source``, and merge ``adapter`` (a directory) over it when one is given.

    ``source`` is a directory with a Hugging Face checkpoint, a GGUF file, or a hub id such as ``org/name``, of which
    ``revision`` (branch, tag or commit) is downloaded. Raises CheckpointError, UnsupportedError, or InvalidInputError
    naming the argument.
    """
    checkpoint = _open_source(source, revision)
    return checkpoint if adapter is None else apply_adapter(checkpoint, adapter)


def is_hub_id(source: str) -> bool:
    """Whether ``source``, if there is no such path, is looked for on the hub."""
    return _HUB_ID.fullmatch(source) is not None


def _open_source(source: str, revision: str | None) -> Checkpoint:
    path = Path(source)
    local = path.is_dir() or path.is_file()
    if local and revision is not None:
        raise InvalidInputError("revision", "only a model on the hub has revisions, and the source is a local path")
    if path.is_dir():
        return _open_directory(path)
    if path.is_file():
        return open_gguf(path)
    if is_hub_id(source):
        directory, commit = download(source, revision)
        return open_directory(directory, name=source, revision=commit)
    raise CheckpointError(
        f"{quoted(source)}: neither a directory with {CONFIG_FILE}, nor a GGUF file, nor a hub id (org/name)"
    )


def _open_directory(path: Path) -> Checkpoint:
    if (path / CONFIG_FILE).exists():
        return open_directory(path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return open_gguf(ggufs[0])
    found = f"{len(ggufs)} GGUF files (name one of them)" if ggufs else "no GGUF file"
    raise CheckpointError(f"{path.resolve().name}: no {CONFIG_FILE} and {found} in this directory")
