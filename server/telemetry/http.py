"""The port that Prometheus scrapes: ``/metrics``, and ``/stats`` as JSON. On threads of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from threading import Thread
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from server.errors import SettingsError

#: Seconds that a scraper may take to send its request, or to take the answer.
_SLOWEST_S = 5.0


class MetricsServer:
    """Listens from construction on; raises SettingsError when it cannot. ``address`` is where."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, stats: Callable[[], dict[str, Any]]) -> None:
        class Handler(_Handler):
            answers: ClassVar = {
                "/metrics": lambda accept: _metrics(registry, accept),
                "/stats": lambda accept: _json(stats()),
            }

        class Server(ThreadingHTTPServer):
            address_family = AF_INET6 if ":" in host else AF_INET

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError):
            raise SettingsError(
                "metrics_address", "cannot listen there: it is in use, or not an address of this machine"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    #: Path to what answers it: the Accept header to content type and body.
    answers: ClassVar[dict[str, Callable[[str], tuple[str, bytes]]]]
    timeout = _SLOWEST_S
    server_version, sys_version = "guardlet", ""

    def do_GET(self) -> None:
        """Answer, or 404."""
        answer = self.answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(404)
            return
        content_type, body = answer(self.headers.get("Accept", ""))
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not on standard error: scrapes come every few seconds."""


def _metrics(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(registry)


def _json(value: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()
