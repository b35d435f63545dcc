"""A tiny OpenAI-compatible LLM that says what it is told to, and remembers what it saw: for tests and benchmarks.

``python -m tools.fake_llm 8000`` serves one until Ctrl-C.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Seen:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeLlm:
    """Serves on a free port, or ``listen``, while its ``with`` block runs. The fields say what it answers, and may be
    changed.

    ``says``: the pieces of each choice, chunks where it streams. ``calls``: tool calls of the first one (name,
    arguments). ``endless`` repeats the last piece until the client leaves. ``raw``: any other body, with ``kind`` and
    ``status``. ``gzipped``: compress answers, asked or not. ``trailers``: send trailers after a stream.
    """

    says: list[list[str]] = field(default_factory=lambda: [["Hello", " there", "."]])
    calls: list[tuple[str, str]] = field(default_factory=list)
    endless: bool = False
    raw: bytes | None = None
    kind: str = "application/json"
    status: int = 200
    gzipped: bool = False
    trailers: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    listen: int = 0
    seen: list[Seen] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FakeLlm:
        llm = self

        class Handler(_Handler):
            fake = llm

        self._server = ThreadingHTTPServer(("127.0.0.1", self.listen), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        """Where it serves, on 127.0.0.1."""
        return self._server.server_address[1]

    def chunks(self, legacy: bool) -> list[dict[str, Any]]:
        """The chunks of a streamed answer."""
        if legacy:
            texts = [{"index": index, "text": piece} for index, pieces in enumerate(self.says) for piece in pieces]
            return [*map(_text_chunk, texts), _text_chunk({"index": 0, "text": "", "finish_reason": "stop"})]
        found = [_chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self.says))]
        found += [_chunk(index, {"content": piece}) for index, pieces in enumerate(self.says) for piece in pieces]
        for number, (name, arguments) in enumerate(self.calls):
            call = {"index": number, "id": f"call_{number}", "type": "function"}
            found.append(_chunk(0, {"tool_calls": [call | {"function": {"name": name, "arguments": ""}}]}))
            half = len(arguments) // 2
            for part in (arguments[:half], arguments[half:]):
                found.append(_chunk(0, {"tool_calls": [{"index": number, "function": {"arguments": part}}]}))
        return found + [_chunk(index, {}, "tool_calls" if self.calls else "stop") for index in range(len(self.says))]

    def answer(self, legacy: bool) -> dict[str, Any]:
        """An answer in one piece."""
        choices: list[dict[str, Any]] = []
        for index, pieces in enumerate(self.says):
            said: dict[str, Any] = {"text": "".join(pieces)}
            if not legacy:
                said = {"message": {"role": "assistant", "content": "".join(pieces)}}
            choices.append({"index": index, **said, "finish_reason": "stop", "logprobs": None})
        if self.calls:
            choices[0]["message"]["tool_calls"] = [
                {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for number, (name, arguments) in enumerate(self.calls)
            ]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        kind = "text_completion" if legacy else "chat.completion"
        return {"id": "x-1", "object": kind, "created": 1, "model": "fake", "choices": choices, "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeLlm

    def do_GET(self) -> None:
        self._see(b"")
        self._whole(json.dumps({"object": "list", "data": [{"id": "fake", "object": "model"}]}).encode())

    def do_POST(self) -> None:
        body = self._body()
        self._see(body)
        fake, legacy = self.fake, not self.path.endswith("/chat/completions")
        if fake.raw is not None:
            self._whole(fake.raw)
        elif self.headers.get("content-encoding") is None and json.loads(body).get("stream"):
            self._stream(legacy)
        else:
            self._whole(json.dumps(fake.answer(legacy)).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue  # trailers
        return body

    def _see(self, body: bytes) -> None:
        self.fake.seen.append(Seen(self.path, {key.lower(): value for key, value in self.headers.items()}, body))

    def _begin(self, kind: str) -> None:
        self.send_response(self.fake.status)
        self.send_header("content-type", kind)
        if self.fake.gzipped:
            self.send_header("content-encoding", "gzip")
        for name, value in self.fake.headers.items():
            self.send_header(name, value)

    def _whole(self, body: bytes) -> None:
        body = gzip.compress(body) if self.fake.gzipped else body
        self._begin(self.fake.kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, legacy: bool) -> None:
        self._begin("text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            chunks = self.fake.chunks(legacy)
            datas = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks] + [b"data: [DONE]\n\n"]
            if self.fake.gzipped:
                datas = [gzip.compress(b"".join(datas))]
            for number, data in enumerate(datas):
                self._piece(data)
                while self.fake.endless and number == len(datas) - 3:
                    self._piece(data)
                    time.sleep(0.01)
                time.sleep(self.fake.pause_s)
            self.wfile.write(b"0\r\nx-served-by: fake\r\n\r\n" if self.fake.trailers else b"0\r\n\r\n")
        except OSError:
            self.fake.left.set()
            self.close_connection = True

    def _piece(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return {"id": "x-1", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": [choice]}


def _text_chunk(choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x-1", "object": "text_completion", "created": 1, "model": "fake", "choices": [choice]}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), FakeLlm(listen=int(sys.argv[1])):
        threading.Event().wait()
