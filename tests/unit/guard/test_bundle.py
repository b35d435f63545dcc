"""Failure test 19: a bundle that was tampered with is refused, and the file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.bundle import open_bundle
from guard.bundle.manifest import Manifest
from guard.errors import BundleError

from .builders import FORMAT, write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", "guard").directory


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((bundle / "manifest.json").read_text())
    change(value)
    (bundle / "manifest.json").write_text(json.dumps(value))


def test_manifest_survives_a_round_trip(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest
    assert opened.manifest.guard == FORMAT
    assert opened.chat_template() is not None


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "chat_template.jinja"])
def test_flipped_byte_is_found(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: SHA-256"):
        open_bundle(bundle)


def test_truncated_missing_and_extra_files_are_found(bundle: Path) -> None:
    (bundle / "extra.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"extra\.bin: not listed"):
        open_bundle(bundle)
    (bundle / "extra.bin").unlink()
    (bundle / "model.onnx").write_bytes(b"gr")
    with pytest.raises(BundleError, match=r"model\.onnx: 2 bytes"):
        open_bundle(bundle)
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx: listed in the manifest but missing"):
        open_bundle(bundle)


def test_links_are_not_followed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.onnx").rename(tmp_path / "elsewhere")
    (bundle / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"model\.onnx: not a regular file"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", ".."])
def test_file_names_stay_inside(bundle: Path, name: str) -> None:
    edit(bundle, lambda value: value["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(BundleError, match="not a plain file name"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda value: value.pop("shape"), "manifest.shape"),
        (lambda value: value.update(surprise=1), "surprise"),
        (lambda value: value.update(format_version=2), "format_version"),
        (lambda value: value.update(format="zip"), "manifest.format"),
        (lambda value: value["shape"].update(layers="2"), "manifest.shape.layers"),
        (lambda value: value["shape"].update(layers=True), "manifest.shape.layers"),
        (lambda value: value.update(guard=None), "manifest.guard"),
        (lambda value: value["graph"].update(interface="magic"), "manifest.graph.interface"),
        (lambda value: value["graph"].update(file="other.onnx"), r"other\.onnx"),
        (lambda value: value["guard"]["answer"].update(safe=1.5), "manifest.guard.answer.safe"),
        (lambda value: value["generation"].update(temperature=float("nan")), "manifest.generation.temperature"),
        (lambda value: value["generation"].update(top_p=10**400), "manifest.generation.top_p"),
    ],
)
def test_broken_manifest_names_the_field(bundle: Path, change: Callable[[dict[str, Any]], object], field: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=field):
        open_bundle(bundle)


@given(data=st.binary(max_size=200))
def test_garbage_manifest_is_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(data)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a directory"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        open_bundle(tmp_path)
