"""The client's half of StreamClassify, without the channel: what was sent, what of it may be shown, and the answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from guard.client import convert
from guard.client.convert_policy import read_action
from guard.client.errors import NoAnswerError, UnsafeTextError
from guard.client.results import Classification, StreamProgress
from guard.errors import InvalidInputError
from guard.v1 import moderation_pb2
from guard.verdict import Action

#: The contract's limit for one piece is 64 KiB of UTF-8, and no code point has more than four bytes.
_PIECE_CHARACTERS = (64 << 10) // 4


class HeldText:
    """Text of one stream: sent, and held back until the server releases it. One thread may add while another reads."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._released = 0  # bytes that are no longer held
        self._complete = False
        self._lock = threading.Lock()
        self._result: moderation_pb2.ClassifyResponse | None = None
        self._blocked = False

    def add(self, delta: str) -> Iterator[moderation_pb2.StreamClassifyRequest]:
        """Hold ``delta``; yields the steps to send. Raises InvalidInputError when it is not valid Unicode."""
        try:
            encoded = delta.encode()
        except UnicodeEncodeError:
            raise InvalidInputError("text", "has a lone surrogate, which is not valid Unicode") from None
        with self._lock:
            self._held += encoded
        for begin in range(0, len(delta), _PIECE_CHARACTERS):
            yield moderation_pb2.StreamClassifyRequest(text=delta[begin : begin + _PIECE_CHARACTERS])

    def complete(self) -> moderation_pb2.StreamClassifyRequest:
        """All text was added; the step that says so."""
        self._complete = True
        return moderation_pb2.StreamClassifyRequest(finish=moderation_pb2.StreamClassifyFinish())

    def read(self, response: moderation_pb2.StreamClassifyResponse) -> StreamProgress | None:
        """Take the next answer; None for the last. Raises NoAnswerError for one that cannot be true."""
        if self._result is not None:
            raise NoAnswerError("the server went on after its result")
        if response.WhichOneof("step") == "result":
            self._result = response.result
            self._blocked = self._blocked or read_action(response.result.action) is Action.BLOCK
            return None
        if self._blocked:
            raise NoAnswerError("the server went on after it blocked the text")
        text = self._release(response.progress.released_bytes)  # an unset step has no verdict, and is refused below
        progress = convert.read_progress(response.progress, text)
        self._blocked = progress.action is Action.BLOCK
        return progress

    @property
    def ended(self) -> bool:
        """Whether the result has come."""
        return self._result is not None

    @property
    def blocked(self) -> bool:
        """Whether no more text will be released."""
        return self._blocked

    def result(self) -> Classification:
        """Raises NoAnswerError when the stream ended without a result, or before all of the text was judged."""
        if self._result is None:
            raise NoAnswerError("the stream ended without a result")
        if not self._blocked and not self._complete:
            raise NoAnswerError("the server released a text that was not complete")
        return convert.read_classification(self._result)

    def rest(self) -> str:
        """What the result released beyond the checks. Raises UnsafeTextError when the text was blocked, and as
        ``result``.
        """
        result = self.result()
        if self._blocked:
            raise UnsafeTextError(result)
        return self._release(self._released + len(self._held))

    def _release(self, end: int) -> str:
        with self._lock:
            if not self._released <= end <= self._released + len(self._held):
                raise NoAnswerError("the server released text that it was not sent")
            piece = bytes(self._held[: end - self._released])
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                raise NoAnswerError("the server released a part of a character") from None
            del self._held[: len(piece)]
            self._released = end
            return text
