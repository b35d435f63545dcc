"""Opening a bundle: every file is listed, regular, of the recorded size and hash, before anything parses it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from guard.bundle.hashes import check_files, check_regular
from guard.bundle.manifest import MANIFEST_FILE, PIECE_BYTES, Manifest
from guard.bundle.signature import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, BundleKey, check_signed, signed_files
from guard.errors import BundleError

TOKENIZER_FILE = "tokenizer.json"
#: A manifest is a few tens of KiB (hundreds of control tokens); refuse to read one that is not.
MAX_MANIFEST_BYTES = 4 << 20
#: Files that a manifest does not list.
_BESIDE = {MANIFEST_FILE, SIGNATURE_FILE}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle directory."""

    directory: Path
    manifest: Manifest
    #: SHA-256 of manifest.json: it covers every file's hash, so it names the exact model.
    digest: str

    @property
    def graph_path(self) -> Path:
        """The ONNX file; its external data lies beside it."""
        return self.directory / self.manifest.graph.file

    @property
    def tokenizer_path(self) -> Path:
        """The Hugging Face tokenizer.json."""
        return self.directory / TOKENIZER_FILE

    def chat_template(self) -> str | None:
        """The checkpoint's own Jinja chat template, if it came with one."""
        name = self.manifest.chat_template
        return None if name is None else (self.directory / name).read_text(encoding="utf-8")


def open_bundle(
    directory: str | os.PathLike[str], key: BundleKey | None = None, *, whole_files: bool = False
) -> Bundle:
    """Verify the bundle in ``directory`` and return it; raises BundleError naming the file that is wrong.

    With ``key``, also what is not signed with it, before anything else of the bundle is read. Every byte is hashed: in
    pieces where the manifest has hashes of pieces, and with ``whole_files`` then also each file as a whole.
    """
    root = Path(directory)
    if not root.is_dir():
        raise BundleError(f"{root}: not a directory")
    data = _read_small(root, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    signed = None if key is None else _signed_files(root, digest, key)
    manifest = Manifest.from_json(data)
    if signed is not None:
        check_signed(signed, {MANIFEST_FILE: digest, **{name: file.sha256 for name, file in manifest.files.items()}})
    _check_listing(root, manifest)
    check_files(root, manifest.files, whole_files)
    _check_references(manifest)
    return Bundle(root, manifest, digest)


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """The manifest of the bundle in ``directory``, nothing else of it verified; raises BundleError naming it."""
    root = Path(directory)
    try:
        return Manifest.from_json(_read_small(root, MANIFEST_FILE, MAX_MANIFEST_BYTES))
    except BundleError as error:
        raise BundleError(f"{root.name}: {error}") from error


def _signed_files(root: Path, manifest_digest: str, key: BundleKey) -> dict[str, str]:
    """File name to SHA-256 by the bundle's signature, which the manifest fits."""
    signed = signed_files(_read_small(root, SIGNATURE_FILE, MAX_SIGNATURE_BYTES), key)
    if signed.get(MANIFEST_FILE) != manifest_digest:
        raise BundleError(f"{MANIFEST_FILE}: not the file that was signed")
    return signed


def _check_listing(root: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or len(path.parts) != 1 or name in (*_BESIDE, "..", "."):
            raise BundleError(f"manifest.files.{name}: not a plain file name")
        if not _SHA256.fullmatch(record.sha256):
            raise BundleError(f"manifest.files.{name}.sha256: not a SHA-256")
        pieces = record.pieces
        if pieces is not None and (
            len(pieces) != -(-record.bytes // PIECE_BYTES) or not all(map(_SHA256.fullmatch, pieces))
        ):
            raise BundleError(f"manifest.files.{name}.pieces: not the SHA-256 of each {PIECE_BYTES} bytes")
    present = {entry.name for entry in os.scandir(root)} - _BESIDE
    for name in sorted(set(manifest.files) - present):
        raise BundleError(f"{name}: listed in the manifest but missing")
    for name in sorted(present - set(manifest.files)):
        raise BundleError(f"{name}: not listed in the manifest")


def _check_references(manifest: Manifest) -> None:
    """What the runtime will open by name must be among the verified files."""
    needed = [manifest.graph.file, TOKENIZER_FILE]
    if manifest.chat_template is not None:
        needed.append(manifest.chat_template)
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{name}: used by the bundle but not listed in the manifest")


def _read_small(root: Path, name: str, limit: int) -> bytes:
    check_regular(root / name, name)
    if (root / name).stat().st_size > limit:
        raise BundleError(f"{name}: over {limit} bytes")
    return (root / name).read_bytes()
