"""Failure test 19: what was changed is found whichever way a file is hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.bundle import hashes, open_bundle
from guard.bundle.hashes import check_files, record_file
from guard.bundle.manifest import PIECE_BYTES
from guard.errors import BundleError

from .builders import write_bundle

DATA = bytes(range(256)) * 4 + b"rest"
PIECE = 100


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "PIECE_BYTES", PIECE)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def test_pieces_are_the_hashes_of_each_part(root: Path) -> None:
    (root / "whole").write_bytes(DATA)
    record = record_file(root / "whole")
    parts = [DATA[start : start + PIECE] for start in range(0, len(DATA), PIECE)]
    assert record.pieces == tuple(hashlib.sha256(part).hexdigest() for part in parts)
    assert record.sha256 == hashlib.sha256(DATA).hexdigest()
    (root / "whole").write_bytes(DATA[:PIECE])
    assert record_file(root / "whole").pieces is None


@given(position=st.integers(0, len(DATA) - 1), change=st.integers(1, 255), pieces=st.booleans())
def test_any_changed_byte_is_found(root: Path, position: int, change: int, pieces: bool) -> None:
    path = root / "changed"
    path.write_bytes(DATA)
    record = record_file(path) if pieces else replace(record_file(path), pieces=None)
    check_files(root, {"changed": record}, whole_files=True)
    changed = bytearray(DATA)
    changed[position] ^= change
    path.write_bytes(changed)
    with pytest.raises(BundleError, match="changed: SHA-256 differs"):
        check_files(root, {"changed": record}, whole_files=False)


def test_a_whole_hash_that_the_pieces_belie_is_found_when_asked(root: Path) -> None:
    (root / "belied").write_bytes(DATA)
    record = replace(record_file(root / "belied"), sha256="0" * 64)
    check_files(root, {"belied": record}, whole_files=False)
    with pytest.raises(BundleError, match="belied: SHA-256 differs"):
        check_files(root, {"belied": record}, whole_files=True)


@pytest.mark.parametrize("pieces", [[], ["0" * 64] * 2, ["0" * 63], ["../" + "0" * 61]])
def test_pieces_that_do_not_cover_the_file_are_refused(tmp_path: Path, pieces: list[str]) -> None:
    bundle = write_bundle(tmp_path / "bundle", "guard")
    value = json.loads(bundle.manifest.to_json())
    assert "pieces" not in value["files"]["model.onnx"]  # as older versions wrote it
    assert value["files"]["model.onnx"]["bytes"] < PIECE_BYTES
    value["files"]["model.onnx"]["pieces"] = pieces
    (bundle.directory / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match=r"files\.model\.onnx\.pieces"):
        open_bundle(bundle.directory)
