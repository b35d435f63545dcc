"""The parts of the settings that are about telemetry and the audit log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from guard.address import is_local
from server.errors import SettingsError

OFF = "off"
_HOST_PORT = re.compile(r"(?:([A-Za-z0-9.-]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")
_ENDPOINT = re.compile(r"(https?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_REACHED = "other machines could reach it and there is no encryption; use a loopback address, or set allow_insecure"
_SENT = "would leave this machine without encryption; use https, a loopback address, or set allow_insecure"


@dataclass(frozen=True)
class AuditSettings:
    """``file`` takes at most ``max_bytes``, then it becomes FILE.1 and so on; ``keep`` old ones stay. ``fsync`` waits
    for the disk after every line. ``required``: a verdict that cannot be recorded is not given.
    """

    file: Path
    key_file: Path | None
    required: bool = True
    max_bytes: int = 64 << 20
    keep: int = 10
    fsync: bool = False


@dataclass(frozen=True)
class TelemetrySettings:
    """``metrics_address``: where metrics are served, HOST:PORT or "off". ``trace_endpoint``: http(s)://HOST:PORT of an
    OpenTelemetry collector, or "off"; ``trace_ratio`` of the calls whose caller does not trace them are traced.

    Raises SettingsError naming the setting.
    """

    metrics_address: str = OFF
    trace_endpoint: str = OFF
    trace_ratio: float = 1.0
    allow_insecure: bool = False

    def __post_init__(self) -> None:
        if self.metrics_address != OFF:
            self.metrics_host_port()
            if not (self.allow_insecure or is_local(self.metrics_address)):
                raise SettingsError("metrics_address", _REACHED)
        if self.trace_endpoint != OFF:
            endpoint = _ENDPOINT.fullmatch(self.trace_endpoint)
            if endpoint is None or int(endpoint[3]) >= 1 << 16:
                raise SettingsError("trace_endpoint", "expected http://HOST:PORT, https://HOST:PORT or off")
            local = is_local(self.trace_endpoint.partition("://")[2])
            if endpoint[1] == "http" and not (self.allow_insecure or local):
                raise SettingsError("trace_endpoint", _SENT)
        if not 0.0 <= self.trace_ratio <= 1.0:
            raise SettingsError("trace_ratio", "expected 0 to 1")

    def metrics_host_port(self) -> tuple[str, int] | None:
        """Where to serve metrics; None for nowhere."""
        if self.metrics_address == OFF:
            return None
        found = _HOST_PORT.fullmatch(self.metrics_address)
        if found is None or int(found[3]) >= 1 << 16:
            raise SettingsError("metrics_address", "expected HOST:PORT, [IPV6]:PORT or off")
        return found[1] or found[2], int(found[3])
