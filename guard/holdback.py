"""Holding back one choice of a generation until the guard has judged it; its tool calls too."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from guard.conversation import ToolCall
from guard.engine.sequence import Ticket
from guard.errors import InvalidInputError, ModelOutputError
from guard.generation import Choice, Delta, FinishReason
from guard.streaming import Check, StreamSession
from guard.verdict import Action, Judgement


@dataclass(frozen=True)
class _Piece:
    """Text, or one tool call, that is judged as the characters ``begin`` to ``end`` of a choice."""

    begin: int
    end: int
    shown: str | ToolCall
    tokens: int  # of the choice, this piece included


class HeldChoice:
    """One choice on its way out: what was written waits here until the guard has judged it."""

    def __init__(
        self, index: int, session: StreamSession, on_release: Callable[[Delta], None], deadline: float | None
    ) -> None:
        self.blocked = False
        self.judgement: Judgement | None = None
        self._index = index
        self._session = session
        self._on_release = on_release
        self._deadline = deadline
        self._waiting: deque[_Piece] = deque()
        self._released, self._tokens = 0, 0
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._told_calls = 0

    @property
    def text(self) -> str:
        """What was written so far, as the guard reads it."""
        return self._session.text

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the guard so far."""
        return self._session.computed_tokens

    def add(self, delta: Delta) -> None:
        """Take what was written, make the checks that are due, and release what they allow."""
        if self.blocked:
            return
        if delta.text:
            self._wait(delta.text, delta.text, delta.completion_tokens)
        for call in delta.tool_calls:
            self._wait("\n" + spoken(call) + "\n", call, delta.completion_tokens)
        self._told_calls += len(delta.tool_calls)
        while not self.blocked and self._judge(self._session.next_check):
            pass

    def finish(self, written: Choice) -> Choice:
        """The choice is complete: judge and release the rest, with the calls that came in no delta."""
        self.add(Delta("", written.completion_tokens, self._index, tool_calls=written.tool_calls[self._told_calls :]))
        if not self.blocked:
            self._judge(self._session.check_rest)
        if not self.blocked:
            self._release(len(self._session.text))  # what is left is white space
            if self._session.text.strip():
                self.judgement = self._session.result()
        return self.shown(written)

    def shown(self, written: Choice) -> Choice:
        """``written`` as it may be shown."""
        reason = FinishReason.CONTENT_FILTER if self.blocked else written.finish_reason
        return replace(written, finish_reason=reason, text="".join(self._text), tool_calls=tuple(self._calls))

    def close(self) -> None:
        """Stop judging and give the memory back; may be called on any thread."""
        self._session.close()

    def _wait(self, judged: str, shown: str | ToolCall, tokens: int) -> None:
        begin = len(self._session.text)
        self._session.add(judged)
        self._waiting.append(_Piece(begin, begin + len(judged), shown, tokens))

    def _judge(self, queue: Callable[[float | None], Ticket[Check] | None]) -> bool:
        """Make one check; returns whether one was due."""
        try:
            ticket = queue(self._deadline)
        except InvalidInputError as error:  # too long, once it is normalized: not what the caller wrote
            raise ModelOutputError(f"what the model wrote cannot be judged: {error.problem}") from None
        if ticket is None:
            return False
        check = ticket.future.result()
        if check.action is Action.BLOCK:
            self.blocked = True
            self.judgement = self._session.result()
            self.close()
        self._release(check.released)
        return True

    def _release(self, end: int) -> None:
        """Let go of what was judged as the first ``end`` characters; a tool call only as a whole."""
        text, calls = [], []
        while self._waiting and self._released < end:
            piece = self._waiting[0]
            if isinstance(piece.shown, str):
                text.append(piece.shown[self._released - piece.begin : end - piece.begin])
            elif piece.end <= end:
                calls.append(piece.shown)
            if piece.end > end:
                self._released = end if isinstance(piece.shown, str) else piece.begin
                break
            self._released, self._tokens = piece.end, piece.tokens
            self._waiting.popleft()
        if text or calls:
            self._text += text
            self._calls += calls
            self._on_release(Delta("".join(text), self._tokens, self._index, tool_calls=tuple(calls)))


def spoken(call: ToolCall) -> str:
    """A tool call as the guard reads it: the name, then the arguments' keys and values, a line each, without escapes.

    Raises ModelOutputError for arguments that are no JSON, or not valid Unicode.
    """
    try:
        # Objects as lists of pairs: of a key that is given twice, both values leave, so both are judged.
        text = "\n".join([call.name, *_leaves(json.loads(call.arguments, object_pairs_hook=list))])
        text.encode()
    except (ValueError, RecursionError):
        raise ModelOutputError("a tool call's arguments cannot be read") from None
    return text


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield str(value)
