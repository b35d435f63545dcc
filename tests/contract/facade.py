"""A server with the HTTP facade, the real ``openai`` client of it, and requests that no client would send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai

from .fakes import FakeModels
from .running import Running, running

#: What OpenAI's clients say of their bodies.
JSON = "Content-Type: application/json"


@dataclass
class Facade:
    """A started server and a client of its HTTP side."""

    server: Running
    client: openai.AsyncOpenAI

    @property
    def engine(self) -> Any:
        """That of the instruct model."""
        return self.server.app.registry.instruct("")[0].model.engine

    async def chat(self, text: str = "hi", **fields: Any) -> Any:
        """A greedy completion of at most eight tokens, unless ``fields`` say otherwise."""
        defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
        asked = [{"role": "user", "content": text}]
        return await self.client.chat.completions.create(
            **{"model": "default", "messages": asked, **defaults, **fields}
        )

    async def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send ``request`` as it is on a connection of its own; returns status, headers and body."""
        host, _, port = (self.server.app.http.address if self.server.app.http else "").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        await writer.drain()
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        writer.close()
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, body


@asynccontextmanager
async def facade(models: FakeModels, *, api_key: str = "unused", **settings: Any) -> AsyncIterator[Facade]:
    """A server with HTTP and ``settings``."""
    async with running(models, http_address="127.0.0.1:0", **settings) as server:
        assert server.app.http is not None
        base = f"http://{server.app.http.address}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=api_key, max_retries=0, timeout=30) as client:
            yield Facade(server, client)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str) -> bytes:
    """A request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()
