"""Signatures of bundles: that it is whole, the manifest tells; who made it, only a signature can.

The file is what OpenSSF Model Signing (the package model-signing, 1.x) writes when it signs with a key: a Sigstore
bundle 0.3 in JSON around a DSSE envelope (https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md) around an
in-toto statement that lists the SHA-256 of every file. Checking it takes an elliptic-curve signature, for which
``cryptography`` is enough; what model-signing needs to make one stays out of the server.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.errors import BundleError, InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

SIGNATURE_FILE = "model.sig"
#: A signature names a handful of files in a few KiB.
MAX_SIGNATURE_BYTES = 1 << 20
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_CURVES = "expected an elliptic-curve key on P-256, P-384 or P-521"
_MALFORMED = f"{SIGNATURE_FILE}: not a signature of model-signing 1.x with a key"


@dataclass(frozen=True)
class BundleKey:
    """The public half of the key that bundles must be signed with."""

    public: EllipticCurvePublicKey

    @classmethod
    def read(cls, path: Path, setting: str = "key") -> BundleKey:
        """From a PEM file. Raises InvalidInputError, naming ``setting``, for anything but a key on a NIST curve, and
        UnsupportedError where cryptography is not installed.
        """
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
            from cryptography.hazmat.primitives.serialization import load_pem_public_key
        except ImportError:
            raise UnsupportedError("signatures need the package cryptography: extra server, or signing") from None
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as error:
            raise InvalidInputError(setting, f"{path}: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise InvalidInputError(setting, f"{path}: not a public key in PEM") from None
        if not isinstance(key, EllipticCurvePublicKey):
            raise InvalidInputError(setting, _CURVES)
        return cls.of(key, setting)

    @classmethod
    def of(cls, key: EllipticCurvePublicKey, setting: str = "key") -> BundleKey:
        """Of a loaded key. Raises InvalidInputError for a curve that model-signing does not take."""
        if key.curve.name not in _hashes():
            raise InvalidInputError(setting, _CURVES)
        return cls(key)


def signed_files(signature: bytes, key: BundleKey) -> dict[str, str]:
    """File name to SHA-256, as signed with ``key``. Raises BundleError; nothing is read before the signature holds."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    try:
        envelope, payload, value = _read(signature)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(_MALFORMED) from None
    if envelope.get("payloadType") != _PAYLOAD_TYPE:
        raise BundleError(_MALFORMED)
    signed = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)
    try:
        key.public.verify(value, signed, ECDSA(_hashes()[key.public.curve.name]))
    except InvalidSignature:
        raise BundleError(f"{SIGNATURE_FILE}: not made with the expected key, or changed since") from None
    try:
        return _resources(json.loads(payload))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(_MALFORMED) from None


def check_signed(signed: dict[str, str], files: dict[str, str]) -> None:
    """Raises BundleError naming the first file that is signed otherwise, or on one side only."""
    for name in sorted(signed.keys() | files.keys()):
        if name not in signed:
            raise BundleError(f"{name}: not covered by the signature")
        if signed[name] != files.get(name):
            raise BundleError(f"{name}: not the file that was signed")


def _read(signature: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    """The envelope, what it says, and its one signature."""
    bundle = json.loads(signature)
    if bundle["mediaType"] != _MEDIA_TYPE:
        raise ValueError(_MEDIA_TYPE)
    envelope = bundle["dsseEnvelope"]
    (entry,) = envelope["signatures"]
    return envelope, base64.b64decode(envelope["payload"], validate=True), base64.b64decode(entry["sig"], validate=True)


def _resources(statement: dict[str, Any]) -> dict[str, str]:
    predicate = statement["predicate"]
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, _PREDICATE_TYPE):
        raise ValueError(_PREDICATE_TYPE)
    if (predicate["serialization"]["method"], predicate["serialization"]["hash_type"]) != ("files", "sha256"):
        raise ValueError("serialization")
    resources = {resource["name"]: resource["digest"] for resource in predicate["resources"]}
    algorithms = {resource["algorithm"] for resource in predicate["resources"]}
    if algorithms != {"sha256"} or len(resources) != len(predicate["resources"]):
        raise ValueError("resources")
    return resources


def _hashes() -> dict[str, Any]:
    """The hash that goes with each curve, by the Sigstore specification."""
    from cryptography.hazmat.primitives import hashes

    return {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
