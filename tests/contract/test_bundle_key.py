"""Failure test 19: with ``bundle_key``, `guard serve` refuses what is not signed with it, and names the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from export.sign import sign_bundle
from tests.unit.guard.builders import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Whole by its manifest; its graph is no ONNX, so whoever gets as far as loading it says something else."""
    private = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    return write_bundle(tmp_path / "bundle", "guard").directory


def serve(bundle: Path, key: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"GUARD_BUNDLE_KEY": str(key), "GUARD_DRAIN_DELAY_S": "0", "GUARD_KV_CACHE_MIB": "16"}
    command = [sys.executable, "-m", "guard.cli", "serve", "--guard", str(bundle), "--address", "127.0.0.1:0"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_an_unsigned_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    refused = serve(bundle, tmp_path / "key.pub")
    assert refused.returncode == 1
    assert "model.sig: missing" in refused.stderr


def test_a_badly_signed_bundle_is_refused_and_a_well_signed_one_goes_on_to_be_loaded(
    bundle: Path, tmp_path: Path
) -> None:
    sign_bundle(bundle, tmp_path / "key.pem")
    loaded = serve(bundle, tmp_path / "key.pub")
    assert loaded.returncode == 1
    assert "model.sig" not in loaded.stderr and "load_failed" in loaded.stderr
    (bundle / "model.sig").write_text((bundle / "model.sig").read_text().replace('"sig":"M', '"sig":"N'))
    refused = serve(bundle, tmp_path / "key.pub")
    assert refused.returncode == 1
    assert "model.sig: not made with the expected key" in refused.stderr


def test_a_key_that_cannot_be_read_is_named(bundle: Path, tmp_path: Path) -> None:
    refused = serve(bundle, tmp_path / "missing.pub")
    assert refused.returncode != 0
    assert "bundle_key" in refused.stderr and "Traceback" not in refused.stderr
