"""Puts the parts together: an observer for each call, and the port where metrics are read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import ProcessCollector

from server import log
from server.audit import AuditLog
from server.errors import SettingsError
from server.limits import Gate
from server.registry import Entry
from server.telemetry.calls import CallObserver
from server.telemetry.collector import ServerCollector
from server.telemetry.http import MetricsServer
from server.telemetry.metrics import Metrics
from server.telemetry.settings import OFF, AuditSettings, TelemetrySettings
from server.telemetry.window import Window

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from server.telemetry.tracing import Tracing


class Telemetry:
    """Of one server. ``start``, and ``stop`` at the end. Raises SettingsError."""

    def __init__(
        self,
        settings: TelemetrySettings,
        audit: AuditSettings | None,
        gates: Mapping[str, Gate],
        tracing: Tracing | None = None,
    ) -> None:
        """``tracing``: instead of that of the settings."""
        self.metrics = Metrics()
        self.window = Window()
        self._settings = settings
        self._collector = ServerCollector(gates)
        self._tracing = tracing or _tracing(settings)
        self._audit = None if audit is None else AuditLog(audit)
        self._server: MetricsServer | None = None
        ProcessCollector(registry=self.metrics.registry)
        self.metrics.registry.register(self._collector)

    @property
    def address(self) -> str | None:
        """Where metrics are served; None while they are not."""
        return None if self._server is None else self._server.address

    def start(self) -> None:
        """Serve the metrics, if the settings say so. Raises SettingsError when the port is taken."""
        found = self._settings.metrics_host_port()
        if found is not None:
            self._server = MetricsServer(*found, self.metrics.registry, self.window.summary)
            log.event(logging.INFO, "metrics", address=self._server.address)

    def models_changed(self, models: Sequence[Entry]) -> None:
        """These are the models now."""
        self._collector.models = tuple(models)

    def loaded(self, digest: str, seconds: float) -> None:
        """Loading the bundle took so long."""
        self._collector.load_s = {**self._collector.load_s, digest: seconds}

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallObserver:
        """A call of ``method`` arrived with ``metadata``."""
        span = None if self._tracing is None else self._tracing.begin(method, metadata)
        return CallObserver(method, self.metrics, self.window, self._audit, span)

    async def stop(self) -> None:
        """Serve no more metrics, and let go of the spans and audit lines that are on their way."""
        parts: list[Any] = [part for part in (self._server, self._tracing, self._audit) if part is not None]
        for part in parts:
            await asyncio.to_thread(part.close)


def _tracing(settings: TelemetrySettings) -> Tracing | None:
    if settings.trace_endpoint == OFF:
        return None
    try:
        from server.telemetry import tracing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise SettingsError("trace_endpoint", "needs OpenTelemetry; pip install 'guardlet[otel]'") from None
    return tracing.to_collector(settings.trace_endpoint, settings.trace_ratio)
