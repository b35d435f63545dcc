"""TLS for HTTP with gRPC's files, which may be replaced while the server runs."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from server import log
from server.errors import SettingsError
from server.tls import TlsFiles, server_credentials
from server.watched import signature


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """A context that takes the files as they are when a connection is made; changed ones that cannot be used are logged
    and left. Raises SettingsError for the first ones.
    """
    return _Latest(files).context


class _Latest:
    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._signature = signature(files.paths)
        self.context = self._read()
        self.context.sni_callback = self._use_latest

    def _read(self) -> ssl.SSLContext:
        server_credentials(self._files)  # says what is wrong with the files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._files.certificate, self._files.key)
            if self._files.client_ca is not None:
                context.load_verify_locations(self._files.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError):
            raise SettingsError("tls_cert", f"{self._files.certificate}: cannot be used for HTTPS") from None
        return context

    def _use_latest(self, connection: Any, name: str | None, first: ssl.SSLContext) -> None:
        """Called in each handshake, also without a name (OpenSSL's servername callback)."""
        now = signature(self._files.paths)
        if now != self._signature:
            self._signature = now
            try:
                self.context = self._read()
                log.event(logging.INFO, "certificate_changed", path=str(self._files.certificate))
            except SettingsError as error:
                log.event(logging.ERROR, "certificate_kept", problem=str(error))
        connection.context = self.context
