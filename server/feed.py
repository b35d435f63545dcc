"""Responses on their way to a reader who may be slow; the text of one generation from the engine's thread on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from guard.conversation import ToolCall
from guard.errors import CancelledError
from guard.generation import Delta, TokenLogprob
from server.errors import SlowReaderError


@dataclass(frozen=True)
class Piece:
    """What is ready to send of one choice: text, the number of tokens it stands for, those tokens, and calls."""

    text: str
    tokens: int
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: Piece) -> Piece:
        return Piece(
            self.text + other.text,
            self.tokens + other.tokens,
            self.choice,
            self.logprobs + other.logprobs,
            self.tool_calls + other.tool_calls,
        )


class Writer(Protocol):
    """What writes the text of a feed. Both are harmless at any time, and do not block."""

    @property
    def pause(self) -> Callable[[], None]:
        """Write nothing more, but for what is being written."""

    @property
    def unpause(self) -> Callable[[], None]:
        """Go on."""


class Feed:
    """Text on its way from the engine's thread to a reader. While ``max_tokens`` tokens or more wait for the reader,
    the writer is paused; the engine's thread is never made to wait.

    ``push`` and ``finish`` may be called on any thread, the rest on the loop's only.
    """

    def __init__(self, max_tokens: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_tokens = max_tokens
        self._changed = asyncio.Event()
        self._lock = threading.Lock()  # over what follows
        self._waiting: list[Piece] = []
        self._tokens = 0  # of the waiting pieces
        self._seen: dict[int, int] = {}  # tokens of each choice's whole text so far
        self._finished = False
        self._writer: Writer | None = None

    @property
    def tokens(self) -> int:
        """Those that wait for the reader."""
        with self._lock:
            return self._tokens

    def hold_back(self, writer: Writer) -> None:
        """From now on ``writer`` is paused while too much waits."""
        with self._lock:
            self._writer = writer
            self._pause_if_full()

    def push(self, delta: Delta) -> None:
        """Hand over a piece of text."""
        with self._lock:
            tokens = delta.completion_tokens - self._seen.get(delta.choice, 0)
            self._seen[delta.choice] = delta.completion_tokens
            self._tokens += tokens
            self._waiting.append(Piece(delta.text, tokens, delta.choice, delta.logprobs, delta.tool_calls))
            self._pause_if_full()
        self._tell_loop()

    def finish(self) -> None:
        """No more text will come."""
        with self._lock:
            self._finished = True
        self._tell_loop()

    async def take(self) -> list[Piece]:
        """All text that waits, as one piece for each choice that has some; nothing at the end."""
        while True:
            self._changed.clear()
            with self._lock:
                waiting, self._waiting, self._tokens = self._waiting, [], 0
                finished = self._finished
                if self._writer is not None:
                    self._writer.unpause()
            if waiting or finished:
                return joined(waiting)
            await self._changed.wait()

    def _pause_if_full(self) -> None:
        if self._writer is not None and self._tokens >= self._max_tokens:
            self._writer.pause()

    def _tell_loop(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces of each choice as one, in the order in which the choices first come."""
    of_choice: dict[int, Piece] = {}
    for piece in pieces:
        known = of_choice.get(piece.choice)
        of_choice[piece.choice] = piece if known is None else known + piece
    return list(of_choice.values())


async def sent(sending: Awaitable[None], idle_s: float) -> None:
    """Await ``context.write(...)``; raises SlowReaderError when the reader takes nothing for ``idle_s`` seconds."""
    try:
        async with asyncio.timeout(idle_s):
            await sending
    except TimeoutError:
        raise SlowReaderError(f"nothing was read for {idle_s:g} s") from None
    except grpc.aio.InternalError:  # the stream broke before gRPC came to cancel this handler
        raise CancelledError("the caller went away") from None
