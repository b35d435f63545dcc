"""Responses on their way to a reader who may be slow; the text of one generation from the engine's thread on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

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


class Feed:
    """Holds at most ``max_tokens`` tokens that the reader has not taken. The engine's thread is never made to wait.

    ``push`` and ``finish`` may be called on any thread, the rest on the loop's only.
    """

    def __init__(self, max_tokens: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.max_tokens = max_tokens
        self._waiting: list[Piece] = []
        self._tokens = 0  # of the waiting pieces
        self._seen: dict[int, int] = {}  # tokens of each choice's whole text so far
        self._changed = asyncio.Event()
        self._finished = False
        #: Called when the reader is too far behind: more text would be of no use.
        self.stop: Callable[[], None] = lambda: None

    def push(self, delta: Delta) -> None:
        """Hand over a piece of text."""
        self._call(lambda: self._append(delta))

    def finish(self) -> None:
        """No more text will come."""
        self._call(self._finish)

    async def take(self) -> list[Piece]:
        """All text that waits, as one piece for each choice that has some; nothing at the end.

        Raises SlowReaderError when more waits than may: the reader is too far behind.
        """
        while not self._waiting and not self._finished:
            self._changed.clear()
            await self._changed.wait()
        if self._tokens > self.max_tokens:
            raise SlowReaderError(f"{self._tokens} tokens wait to be read, the limit is {self.max_tokens}")
        waiting, self._waiting, self._tokens = self._waiting, [], 0
        return joined(waiting)

    def _append(self, delta: Delta) -> None:
        tokens = delta.completion_tokens - self._seen.get(delta.choice, 0)
        self._seen[delta.choice] = delta.completion_tokens
        self._tokens += tokens
        self._waiting.append(Piece(delta.text, tokens, delta.choice, delta.logprobs, delta.tool_calls))
        self._changed.set()
        if self._tokens > self.max_tokens:
            self.stop()

    def _finish(self) -> None:
        self._finished = True
        self._changed.set()

    def _call(self, step: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(step)


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
