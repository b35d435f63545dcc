"""How a channel to a Guardlet server is set up: retries, limits, transport security."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

from guard.address import is_local
from guard.errors import InvalidInputError

#: An API key or a token; a function is asked before every call, and must not block.
ApiKey: TypeAlias = "str | Callable[[], str] | None"
#: Seconds a call may take when the caller does not say.
DEFAULT_TIMEOUT_S = 60.0
#: Seconds between two looks at a server that is starting.
POLL_S = 0.1

#: Calls go to all addresses that the name of the server has, in turn; gRPC's default takes the first for good.
#: gRPC's own retry policy (proposal A6). Only Classify, which is idempotent, and only when the server is UNAVAILABLE.
#: Throttling: when more than half of the recent calls fail, retries stop. No hedging: compute is not free.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
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


def tls_credentials(
    root_certificates: bytes | None = None, certificate: bytes | None = None, private_key: bytes | None = None
) -> grpc.ChannelCredentials:
    """Credentials that turn TLS on, everything in PEM; ``root_certificates`` None trusts the system's.

    ``certificate`` (with its intermediates) and its ``private_key`` are for servers that demand a client certificate.
    Raises InvalidInputError when one of the two is missing.
    """
    if (certificate is None) != (private_key is None):
        raise InvalidInputError("tls_key" if private_key is None else "tls_cert", "expected both of them")
    return grpc.ssl_channel_credentials(root_certificates, private_key, certificate)


class Channel:
    """A grpc channel, blocking or asyncio, whose calls carry the caller's key."""

    def __init__(self, channel: Any, api_key: ApiKey) -> None:
        self._channel = channel
        self._api_key = api_key
        self.close = channel.close

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """As grpc.Channel's, and so are the others."""
        return self._with_key(self._channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """One request, many responses."""
        return self._with_key(self._channel.unary_stream(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """Many of both."""
        return self._with_key(self._channel.stream_stream(*args, **options))

    def _with_key(self, method: Any) -> Any:
        if self._api_key is None:
            return method

        def call(*request: Any, timeout: float) -> Any:  # none for a stream that is written to later
            return method(*request, timeout=timeout, metadata=self._metadata())

        return call

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        key = self._api_key() if callable(self._api_key) else self._api_key
        return (("authorization", f"Bearer {key}"),)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None, api_key: ApiKey) -> Channel:
    """``credentials`` None is plain text; raises InvalidInputError if the key would then leave the machine."""
    if credentials is None:
        _check_stays(address, api_key)
        return Channel(grpc.insecure_channel(address, options=_OPTIONS), api_key)
    return Channel(grpc.secure_channel(address, credentials, options=_OPTIONS), api_key)


def open_aio_channel(address: str, credentials: grpc.ChannelCredentials | None, api_key: ApiKey) -> Channel:
    """As ``open_channel``, for asyncio."""
    if credentials is None:
        _check_stays(address, api_key)
        return Channel(aio.insecure_channel(address, options=_OPTIONS), api_key)
    return Channel(aio.secure_channel(address, credentials, options=_OPTIONS), api_key)


def _check_stays(address: str, api_key: ApiKey) -> None:
    if api_key is not None and not is_local(address):
        raise InvalidInputError("api_key", "would be sent without encryption to another machine; use TLS")


#: Arguments of ``channel.unary_unary`` for grpc.health.v1.Health/Check; the same on both kinds of channel.
HEALTH_CHECK: dict[str, Any] = {
    "method": "/grpc.health.v1.Health/Check",
    "request_serializer": health_pb2.HealthCheckRequest.SerializeToString,
    "response_deserializer": health_pb2.HealthCheckResponse.FromString,
}
