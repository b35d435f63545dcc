"""The part of the settings that is about HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass

from guard.address import is_local
from server.errors import SettingsError
from server.tls import TlsFiles

OFF = "off"
_HOST_PORT = re.compile(r"(?:([A-Za-z0-9.-]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")


@dataclass(frozen=True)
class HttpSettings:
    """``address``: HOST:PORT (port 0 takes a free one) or "off". ``max_body_bytes`` bounds a request,
    ``max_unread_bytes`` all that are being read at the same time; ``idle_s`` is how long either side of a connection
    may stall, in seconds.

    Raises SettingsError.
    """

    address: str = OFF
    tls: TlsFiles | None = None
    allow_insecure: bool = False
    max_body_bytes: int = 4 << 20
    max_unread_bytes: int = 16 << 20
    idle_s: float = 30.0

    def __post_init__(self) -> None:
        if self.address == OFF:
            return
        self.host_port()
        if not (self.allow_insecure or self.tls is not None or is_local(self.address)):
            raise SettingsError(
                "http_address",
                "other machines could reach it without encryption; use a loopback address, tls_cert, or allow_insecure",
            )

    def host_port(self) -> tuple[str, int]:
        """Where to listen. Raises SettingsError, also for "off"."""
        found = _HOST_PORT.fullmatch(self.address)
        if found is None or int(found[3]) >= 1 << 16:
            raise SettingsError("http_address", "expected HOST:PORT, [IPV6]:PORT or off")
        return found[1] or found[2], int(found[3])
