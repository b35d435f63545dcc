"""How a channel to a Guardlet server is set up: retries, limits, transport security."""

from __future__ import annotations

import json
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

#: Seconds a call may take when the caller does not say.
DEFAULT_TIMEOUT_S = 60.0
#: Seconds between two looks at a server that is starting.
POLL_S = 0.1

#: gRPC's own retry policy (proposal A6). Only Classify, which is idempotent, and only when the server is UNAVAILABLE.
#: Throttling: when more than half of the recent calls fail, retries stop. No hedging: compute is not free.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "guard.v1.ModerationService", "method": "Classify"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
)


def tls_credentials(root_certificates: bytes | None = None) -> grpc.ChannelCredentials:
    """Credentials that turn TLS on; ``root_certificates`` (PEM) None trusts the system's."""
    return grpc.ssl_channel_credentials(root_certificates=root_certificates)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """``credentials`` None is plain text."""
    if credentials is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    return grpc.secure_channel(address, credentials, options=_OPTIONS)


def open_aio_channel(address: str, credentials: grpc.ChannelCredentials | None) -> aio.Channel:
    """``credentials`` None is plain text."""
    if credentials is None:
        return aio.insecure_channel(address, options=_OPTIONS)
    return aio.secure_channel(address, credentials, options=_OPTIONS)


#: Arguments of ``channel.unary_unary`` for grpc.health.v1.Health/Check; the same on both kinds of channel.
HEALTH_CHECK: dict[str, Any] = {
    "method": "/grpc.health.v1.Health/Check",
    "request_serializer": health_pb2.HealthCheckRequest.SerializeToString,
    "response_deserializer": health_pb2.HealthCheckResponse.FromString,
}
