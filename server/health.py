"""grpc.health.v1 for every service of this server.

The servicer of grpcio-health-checking is not used: when one of two watchers of a service leaves, the other is never
told again, and a watcher keeps ``server.stop`` waiting for its whole grace period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = "grpc.health.v1.Health"
_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):
    """Serving states by service name; "" stands for the server as a whole. Used from the event loop's thread only."""

    def __init__(self, services: Iterable[str]) -> None:
        """All start as NOT_SERVING."""
        self._serving = dict.fromkeys(services, False)
        self._changed = asyncio.Event()
        self._shutting_down = False
        self._ended = False

    def set(self, service: str, serving: bool) -> None:
        """Change one state and tell its watchers. Ignored once ``shut_down`` was called."""
        if not self._shutting_down and self._serving.get(service) is not serving:
            self._serving[service] = serving
            self._wake()

    def serving(self, service: str = "") -> bool:
        """The state now; False for a service that this server does not have."""
        return self._serving.get(service, False)

    def shut_down(self) -> None:
        """NOT_SERVING for every service, for good."""
        self._shutting_down = True
        self._serving = dict.fromkeys(self._serving, False)
        self._wake()

    def end_watches(self) -> None:
        """Let every Watch end, so that none holds up the server's stop."""
        self._ended = True
        self._wake()

    async def Check(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for a service that this server does not have."""
        serving = self._serving.get(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _response(serving)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> None:
        """The state now and whenever it changes; SERVICE_UNKNOWN for a service that this server does not have."""
        sent: health_pb2.HealthCheckResponse | None = None
        while True:
            changed = self._changed
            response = _response(self._serving.get(request.service))
            if response != sent:
                await context.write(response)
                sent = response
            if self._ended:
                return
            await changed.wait()

    def _wake(self) -> None:
        """Each change has an event of its own, so a watcher that is still writing cannot miss the next."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _response(serving: bool | None) -> health_pb2.HealthCheckResponse:
    if serving is None:
        return _Status(status=_Status.SERVICE_UNKNOWN)
    return _Status(status=_Status.SERVING if serving else _Status.NOT_SERVING)
