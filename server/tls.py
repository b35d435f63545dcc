"""TLS for the server: certificates from files that may be replaced while it runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from server import log
from server.errors import SettingsError
from server.watched import signature


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. ``certificate`` is the server's, then its intermediates; ``client_ca`` demands client certificates."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those that are set."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that read the files again when one has changed, before the next connection is made.

    Changed files that cannot be used, such as a certificate without its new key yet, are logged and left; connections
    go on with those before. Raises SettingsError for the first ones.
    """
    latest = _Latest(files)
    return grpc.dynamic_ssl_server_credentials(
        latest.configuration,
        latest.changed,  # type: ignore[arg-type] # gRPC takes None for "no change"; types-grpcio does not know
        files.client_ca is not None,
    )


class _Latest:
    """The files as they were last read. ``changed`` is called by gRPC's threads, one connection at a time."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._signature = signature(files.paths)
        self.configuration = _read(files)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """New contents; None when there are none."""
        now = signature(self._files.paths)
        if now == self._signature:
            return None
        self._signature = now
        try:
            self.configuration = _read(self._files)
        except SettingsError as error:
            log.event(logging.ERROR, "certificate_kept", problem=str(error))
            return None
        log.event(logging.INFO, "certificate_changed", path=str(self._files.certificate))
        return self.configuration


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    certificate = _bytes("tls_cert", files.certificate)
    key = _bytes("tls_key", files.key)
    client_ca = None if files.client_ca is None else _bytes("tls_client_ca", files.client_ca)
    leaf = _certificates("tls_cert", files.certificate, certificate)[0]
    if client_ca is not None and files.client_ca is not None:
        _certificates("tls_client_ca", files.client_ca, client_ca)
    if _public(leaf) != _public(_private_key(files.key, key)):
        raise SettingsError("tls_key", f"{files.key}: is not the key of the certificate")
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def _bytes(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(setting, f"{path}: {error.strerror}") from None


def _certificates(setting: str, path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise SettingsError(setting, f"{path}: expected certificates in PEM") from None


def _private_key(path: Path, data: bytes) -> object:
    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise SettingsError("tls_key", f"{path}: expected a private key in PEM that is not encrypted") from None


def _public(holder: object) -> bytes:
    """The public key of a certificate or of a private key."""
    key = holder.public_key()  # type: ignore[attr-defined]
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
