"""Signs a bundle, so that a server can refuse what somebody else made (``guard.bundle.signature`` checks it).

This is the only module that imports model_signing. Its signing with a key needs no network and no account.
"""

from __future__ import annotations

from pathlib import Path

from guard.bundle import BundleKey
from guard.bundle.signature import SIGNATURE_FILE
from guard.errors import InvalidInputError, UnsupportedError


def check_signing_key(private_key: Path) -> BundleKey:
    """Whether ``sign_bundle`` can use it, before the long work of an export; returns its public half.

    Raises InvalidInputError for anything but an unencrypted PEM key on P-256, P-384 or P-521, UnsupportedError where
    the extra is not installed.
    """
    key = _public_key(private_key)
    try:
        import model_signing.signing  # noqa: F401
    except ImportError:
        raise UnsupportedError("signing needs the package model-signing: pip install 'guardlet[signing]'") from None
    return key


def sign_bundle(directory: Path, private_key: Path) -> BundleKey:
    """Write the signature of every file of the finished bundle in ``directory`` beside them; returns the public key."""
    from model_signing import hashing, signing

    signature = directory / SIGNATURE_FILE
    files = hashing.Config().use_file_serialization(hashing_algorithm="sha256").set_ignored_paths(paths=[signature])
    config = signing.Config().set_hashing_config(files).use_elliptic_key_signer(private_key=private_key)
    config.sign(directory, signature)
    return _public_key(private_key)


def _public_key(private_key: Path) -> BundleKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise UnsupportedError("signing needs the package cryptography: pip install 'guardlet[signing]'") from None
    try:
        key = load_pem_private_key(private_key.read_bytes(), password=None)
    except OSError as error:
        raise InvalidInputError("sign", f"{private_key}: {error.strerror}") from None
    except (TypeError, ValueError):
        raise InvalidInputError("sign", f"{private_key}: not an unencrypted private key in PEM") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise InvalidInputError("sign", f"{private_key}: expected an elliptic-curve key")
    return BundleKey.of(key.public_key(), "sign")
