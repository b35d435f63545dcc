"""Failure test 19: a bundle with a bad signature, or with none, is refused before anything of it is loaded."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.sign import check_signing_key, sign_bundle
from guard.bundle import BundleKey, open_bundle
from guard.bundle.signature import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, signed_files
from guard.engine.settings import EngineSettings
from guard.errors import BundleError, GuardError, InvalidInputError
from guard.runtime import load_guard

from .builders import write_bundle


def write_private(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def write_public(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.fixture
def private(tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(tmp_path / "key.pem", key)
    write_public(tmp_path / "key.pub", key)
    return key


@pytest.fixture
def key(private: ec.EllipticCurvePrivateKey) -> BundleKey:
    return BundleKey(private.public_key())


@pytest.fixture
def bundle(tmp_path: Path, private: ec.EllipticCurvePrivateKey) -> Path:
    """Signed by model-signing."""
    directory = write_bundle(tmp_path / "bundle", "guard").directory
    sign_bundle(directory, tmp_path / "key.pem")
    return directory


def resign(bundle: Path, private: ec.EllipticCurvePrivateKey, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The bundle's signature, its statement changed and signed again with ``private``: well signed, but wrong."""
    from cryptography.hazmat.primitives import hashes

    signature = json.loads((bundle / SIGNATURE_FILE).read_text())
    envelope = signature["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    kind = envelope["payloadType"].encode()
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    value = private.sign(encoded, ec.ECDSA(hashes.SHA256()))
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(value).decode()
    return json.dumps(signature).encode()


def test_a_signed_bundle_opens_with_and_without_the_key(bundle: Path, key: BundleKey) -> None:
    assert open_bundle(bundle, key).digest == open_bundle(bundle).digest


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name))
def test_each_curve_of_the_format(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private = ec.generate_private_key(curve)
    directory = write_bundle(tmp_path / "bundle", "guard").directory
    key = sign_bundle(directory, write_private(tmp_path / "key.pem", private))
    assert BundleKey.read(write_public(tmp_path / "key.pub", private)).public == key.public
    assert open_bundle(directory, key)


def test_without_a_signature_the_bundle_is_refused(bundle: Path, key: BundleKey) -> None:
    (bundle / SIGNATURE_FILE).unlink()
    with pytest.raises(BundleError, match=r"model\.sig: missing"):
        open_bundle(bundle, key)


def test_another_key_is_refused(bundle: Path) -> None:
    stranger = BundleKey(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(BundleError, match=r"model\.sig: not made with the expected key"):
        open_bundle(bundle, stranger)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "chat_template.jinja"])
def test_a_file_changed_together_with_its_hash_is_refused(bundle: Path, key: BundleKey, name: str) -> None:
    """The manifest cannot tell: whoever changes a file can write its new hash there."""
    from hashlib import sha256

    old = sha256((bundle / name).read_bytes()).hexdigest()
    data = bytearray((bundle / name).read_bytes())
    data[-1] ^= 1
    (bundle / name).write_bytes(data)
    manifest = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(manifest.replace(old, sha256(data).hexdigest()))
    assert open_bundle(bundle)
    with pytest.raises(BundleError, match=r"manifest\.json: not the file that was signed"):
        open_bundle(bundle, key)


def test_nothing_is_parsed_or_loaded_before_the_signature_holds(
    bundle: Path, key: BundleKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json: not the file that was signed"):
        open_bundle(bundle, key)
    monkeypatch.setattr("guard.runtime.load_runner", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(BundleError, match="not the file that was signed"):
        load_guard(bundle, EngineSettings(), key)


def listed(change: Callable[[list[dict[str, str]]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda statement: change(statement["predicate"]["resources"])


STRANGER = {"name": "x", "digest": "0" * 64, "algorithm": "sha256"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (listed(lambda files: files.pop()), "not covered by the signature"),
        (listed(lambda files: files.append(STRANGER)), "x: not the file that was signed"),
        (listed(lambda files: files.append(files[0])), "not a signature"),
        (listed(lambda files: files[0].update(algorithm="blake2")), "not a signature"),
        (lambda statement: statement["predicate"]["serialization"].update(method="shards"), "not a signature"),
        (lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"), "not a signature"),
        (lambda statement: statement.update(predicate=[]), "not a signature"),
    ],
)
def test_what_is_signed_must_be_these_files(
    bundle: Path, private: ec.EllipticCurvePrivateKey, key: BundleKey, change: Any, problem: str
) -> None:
    (bundle / SIGNATURE_FILE).write_bytes(resign(bundle, private, change))
    with pytest.raises(BundleError, match=problem):
        open_bundle(bundle, key)


def test_a_statement_of_another_kind_is_refused_though_well_signed(bundle: Path, key: BundleKey) -> None:
    signature = json.loads((bundle / SIGNATURE_FILE).read_text())
    signature["dsseEnvelope"]["payloadType"] = "text/plain"
    with pytest.raises(BundleError, match="not a signature"):
        signed_files(json.dumps(signature).encode(), key)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_a_signature_names_other_files(bundle: Path, key: BundleKey, data: st.DataObject) -> None:
    good = (bundle / SIGNATURE_FILE).read_bytes()
    files = signed_files(good, key)
    changed = bytearray(good)
    changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert signed_files(bytes(changed), key) == files  # a byte of what is not signed, such as the key's hint
    except BundleError as error:
        assert SIGNATURE_FILE in str(error)


JSON = st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())


@given(text=st.binary(max_size=60) | JSON)
def test_anything_else_is_an_error_of_ours(text: bytes) -> None:
    with pytest.raises(BundleError):
        signed_files(text, BundleKey(_STRANGER))


_STRANGER = ec.generate_private_key(ec.SECP256R1()).public_key()


def test_a_giant_signature_and_a_link_are_refused(bundle: Path, key: BundleKey, tmp_path: Path) -> None:
    signature = bundle / SIGNATURE_FILE
    signature.rename(tmp_path / "elsewhere")
    signature.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"model\.sig: not a regular file"):
        open_bundle(bundle, key)
    signature.unlink()
    signature.write_bytes(b" " * (MAX_SIGNATURE_BYTES + 1))
    with pytest.raises(BundleError, match=r"model\.sig: over"):
        open_bundle(bundle, key)


def test_keys_that_cannot_be_used_are_named(tmp_path: Path, private: ec.EllipticCurvePrivateKey) -> None:
    assert private
    (tmp_path / "junk").write_text("junk")
    other = rsa.generate_private_key(65537, 2048)
    bitcoin = ec.generate_private_key(ec.SECP256K1())
    for path in (
        tmp_path / "missing",
        tmp_path / "junk",
        tmp_path / "key.pem",
        write_public(tmp_path / "rsa.pub", other),
        write_public(tmp_path / "k1.pub", bitcoin),
    ):
        with pytest.raises(InvalidInputError, match="bundle_key:"):
            BundleKey.read(path, "bundle_key")
    for path in (
        tmp_path / "missing",
        tmp_path / "key.pub",
        write_private(tmp_path / "rsa.pem", other),
        write_private(tmp_path / "k1.pem", bitcoin),
    ):
        with pytest.raises(InvalidInputError, match="sign:"):
            check_signing_key(path)
    check_signing_key(tmp_path / "key.pem")


def model_signing(action: str, bundle: Path, *key: str | Path) -> int:
    command = [
        sys.executable,
        "-m",
        "model_signing",
        action,
        "key",
        bundle,
        "--signature",
        bundle / SIGNATURE_FILE,
        *key,
    ]
    return subprocess.run([*command, *key], capture_output=True).returncode


def test_the_command_of_model_signing_agrees(bundle: Path, key: BundleKey, tmp_path: Path) -> None:
    """Its own verifier takes our signature, and we take one that its command made."""
    assert model_signing("verify", bundle, "--public_key", tmp_path / "key.pub") == 0
    (bundle / SIGNATURE_FILE).unlink()
    assert model_signing("sign", bundle, "--private_key", tmp_path / "key.pem") == 0
    assert open_bundle(bundle, key)
    (bundle / "model.onnx").write_bytes(b"other")
    assert model_signing("verify", bundle, "--public_key", tmp_path / "key.pub") != 0
    with pytest.raises(GuardError):
        open_bundle(bundle, key)
