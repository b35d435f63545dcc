"""Guardlet on Ray Serve: ``serve run deploy/ray/guardlet.yaml``. Each replica is a whole server without a socket.

docs/scaling.md says how it is set up and what Ray's ingress does not hand on.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from guard.errors import UnavailableError
from server.embedded import METHODS, Embedded, in_words
from server.invocation import Refused
from server.settings_sources import load_settings


@dataclass(frozen=True)
class Encoded:
    """Bytes in the place of a message: Ray asks what a method returns for nothing else."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """The bytes."""
        return self.data


class StreamRefusedError(Exception):
    """Ends a stream; of text alone, so that it can go from process to process."""


class Guardlet:
    """A replica. Its methods are those of guard.v1, set below: Ray calls them by the last part of their path."""

    async def __init__(self, values: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        """``values`` are settings by name, over GUARD_* variables. Raises what loading raises: no replica then."""
        self._embedded = await Embedded.open(load_settings(values, os.environ))

    async def check_health(self) -> None:
        """Ray replaces a replica whose check raises."""
        if not self._embedded.healthy:
            raise UnavailableError("an engine hangs, died too often, or has no model")

    async def __del__(self) -> None:
        if hasattr(self, "_embedded"):
            await self._embedded.close()


def unary(name: str) -> Callable[..., Awaitable[Encoded]]:
    """The method ``name``, one message for one."""

    async def method(self: Guardlet, request: bytes, grpc_context: RayServegRPCContext) -> Encoded:
        try:
            answer = await self._embedded.unary(name, request, grpc_context.invocation_metadata())
        except Refused as refused:
            # Raised, it would lose its details: Ray hands on trailers only with an answer. gRPC drops the message of a
            # call that does not end with OK.
            refuse(grpc_context, refused, refused.status.message)
            return Encoded(b"")
        return Encoded(answer.SerializeToString())

    return method


def stream(name: str) -> Callable[..., AsyncIterator[Encoded]]:
    """The method ``name``, which answers with a stream, to one message or to a stream of them."""

    async def method(
        self: Guardlet, request: bytes | gRPCInputStream[bytes], grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Encoded]:
        try:
            async for answer in self._embedded.stream(name, request, grpc_context.invocation_metadata()):
                yield Encoded(answer.SerializeToString())
        except Refused as refused:
            # An answer to carry the details would be a message of the stream. So they are said in words.
            message = in_words(refused.status)
            refuse(grpc_context, refused, message)
            raise StreamRefusedError(message) from None

    return method


def refuse(context: RayServegRPCContext, refused: Refused, message: str) -> None:
    """End the call with ``message``, and with details where Ray hands them on."""
    context.set_code(refused.code)
    context.set_details(message)
    context.set_trailing_metadata(list(refused.trailers))


for _name, _method in METHODS.items():
    setattr(Guardlet, _name, stream(_name) if _method.response_streaming else unary(_name))


def build(settings: dict[str, Any]) -> serve.Application:
    """The application, for ``import_path``; ``settings`` are its ``args``: settings of ``guard serve`` by name.

    Raises SettingsError for wrong ones, before any replica starts.
    """
    load_settings(settings, os.environ)
    return serve.deployment(Guardlet, name="Guardlet").bind(settings)
