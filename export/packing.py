"""Stores the weights of a graph a second time, as ONNX Runtime packs them, so that a load maps them instead.

ONNX Runtime can save what it packed (``session.save_external_prepacked_constant_initializers``), in a whole new model
beside a copy of all the weights. Only the packed weights are taken from there: they are appended to the data file, and
the tensors of the graph point to them. At load ONNX Runtime packs each weight again, compares, and where the result is
the same it keeps the mapped copy and frees its own; where it is not, as on another kind of processor, it keeps its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnxruntime as ort

from export.graph.writer import ALIGNMENT
from export.package import finish_manifest, publish, staging
from export.sign import check_signing_key, sign_bundle
from guard.bundle import open_bundle
from guard.bundle.manifest import Manifest, Packed
from guard.engine.cpus import instruction_sets
from guard.engine.runner import session_options
from guard.errors import BundleError, UnsupportedError

#: How ONNX Runtime names the packed copies of a tensor in TensorProto.external_data, with values such as
#: "operator+hash|offset;length;checksum|...".
_PREFIX = "prepacked_"
#: Bytes copied at a time.
_PIECE = 16 << 20


@dataclass(frozen=True)
class _Blob:
    """One packed piece of memory of a tensor, in a data file."""

    offset: int
    length: int
    checksum: str

    def __str__(self) -> str:
        return f"{self.offset};{self.length};{self.checksum}"


def pack_weights(graph: Path) -> Packed:
    """Add the packed weights to the data file of the model ``graph``, which must be alone in using it.

    Needs as much memory as an ordinary load, and for a while twice the data file's room on disk. Raises
    UnsupportedError when there is nothing that this machine packs.
    """
    model = onnx.load(str(graph), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
    sizes: list[int] = []
    replaced = 0
    with tempfile.TemporaryDirectory(dir=graph.parent, prefix=".packing-") as directory:
        saved = _save_packed(graph, Path(directory) / graph.name)
        with (saved.parent / _data_file(saved)).open("rb") as source:
            for tensor in onnx.load(str(saved), load_external_data=False).graph.initializer:
                entries = _packed_entries(tensor)
                if not entries or tensor.name not in tensors:
                    continue
                original = tensors[tensor.name]
                place = {entry.key: entry.value for entry in original.external_data}
                replaced += int(place["length"])
                with (graph.parent / place["location"]).open("r+b") as data:
                    for key, name, blobs in entries:
                        moved = [replace(blob, offset=_append(source.fileno(), blob, data.fileno())) for blob in blobs]
                        original.external_data.add(key=key, value="|".join([name, *map(str, moved)]))
                        sizes += [blob.length for blob in blobs]
    if not sizes:
        raise UnsupportedError("this graph has no weights that ONNX Runtime packs on this machine")
    graph.write_bytes(model.SerializeToString(deterministic=True))
    return Packed(ort.__version__, instruction_sets(), sum(sizes), max(sizes), replaced)


def pack_bundle(source: Path, out: Path, overwrite: bool = False, sign: Path | None = None) -> Manifest:
    """Write the bundle ``source`` to ``out`` with its weights packed for this machine too; returns its manifest.

    Raises BundleError when ``source`` does not verify or was packed already, or ``out`` is in use, and what
    ``pack_weights`` and ``sign_bundle`` raise. ``source``'s own signature is not kept: the manifest is another.
    """
    if sign is not None:
        check_signing_key(sign)
    bundle = open_bundle(source)
    if bundle.manifest.packed is not None:
        raise BundleError(f"{source}: is packed already; pack the bundle that it was made of")
    with staging(out, overwrite) as directory:
        for name in bundle.manifest.files:
            shutil.copyfile(source / name, directory / name)
        packed = pack_weights(directory / bundle.manifest.graph.file)
        manifest = finish_manifest(directory, replace(bundle.manifest, packed=packed))
        if sign is not None:
            sign_bundle(directory, sign)
        publish(directory, out, overwrite)
    return manifest


def _save_packed(graph: Path, saved: Path) -> Path:
    options = session_options(threads=1)
    options.optimized_model_filepath = str(saved)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _data_file(saved))
    # A tensor of which a copy is packed must be external too; a small one would otherwise be written into the model.
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "0")
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return saved


def _data_file(saved: Path) -> str:
    return f"{saved.name}.packed"


def _packed_entries(tensor: onnx.TensorProto) -> list[tuple[str, str, list[_Blob]]]:
    """Of each packed copy of ``tensor`` the entry's key, the operator and hash that it is for, and where it lies."""
    found = []
    for entry in tensor.external_data:
        if entry.key.startswith(_PREFIX):
            name, *blobs = entry.value.split("|")
            found.append((entry.key, name, [_blob(text) for text in blobs]))
    return found


def _blob(text: str) -> _Blob:
    offset, length, checksum = text.split(";")
    return _Blob(int(offset), int(length), checksum)


def _append(source: int, blob: _Blob, data: int) -> int:
    """Copy ``blob`` to the end of ``data``, at a whole page; returns where it begins."""
    start = -(-os.fstat(data).st_size // ALIGNMENT) * ALIGNMENT
    os.ftruncate(data, start)
    for done in range(0, blob.length, _PIECE):
        piece = os.pread(source, min(_PIECE, blob.length - done), blob.offset + done)
        view = memoryview(piece)
        while view:
            view = view[os.pwrite(data, view, start + done + len(piece) - len(view)) :]
    return start
