"""The socket that HTTP is served on, and uvicorn on the event loop that gRPC has too."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from server import log
from server.errors import SettingsError
from server.openai_http.settings import HttpSettings
from server.openai_http.tls import server_context

#: Connections at a time; further ones are answered 503. Each takes some ten kilobytes.
_MAX_CONNECTIONS = 1024
_KEEP_ALIVE_S = 75
#: Above CRITICAL: what uvicorn says of connections and requests is said here, without text of theirs.
_SILENT = logging.CRITICAL + 10


class HttpServer:
    """Serves ``app``, an ASGI application, between ``start`` and ``stop``. ``address`` is where."""

    def __init__(self, app: Any, settings: HttpSettings) -> None:
        """Raises SettingsError for the certificates."""
        self.address = settings.address
        self._settings = settings
        context = None if settings.tls is None else server_context(settings.tls)
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                loop="none",
                interface="asgi3",
                log_config=None,
                log_level=_SILENT,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_S,
                ssl_context_factory=None if context is None else lambda config, default: context,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises SettingsError."""
        host, port = self._settings.host_port()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family)
        except (OSError, OverflowError):
            problem = "cannot listen there: it is in use, or not an address of this machine"
            raise SettingsError("http_address", problem) from None
        # Connections inherit both. asyncio sets the first itself, but not for sockets that were made without a protocol
        # number, as this one; with Nagle's algorithm on, an answer in two writes waits 40 ms for the client's ACK.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a client that reads nothing for so long is gone (tcp(7))
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._settings.idle_s * 2000))
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{listening.getsockname()[1]}"
        log.event(logging.INFO, "listening_http", address=self.address, tls=self._settings.tls is not None)
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]))

    async def stop(self, grace_s: float) -> None:
        """Take no more requests; those in flight have ``grace_s`` seconds. Called again with 0, it cuts them off."""
        if self._task is None:
            return
        self._server.should_exit = True
        await asyncio.wait({self._task}, timeout=grace_s)
        if not self._task.done():
            self._server.cut_off()
            await asyncio.wait({self._task})


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ``server.drain``'s."""
        yield

    def cut_off(self) -> None:
        """End every request and connection."""
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
