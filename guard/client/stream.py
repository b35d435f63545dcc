"""StreamClassify for blocking code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from guard.client.errors import GuardClientError, typed_errors
from guard.client.held import HeldText
from guard.client.results import Classification, StreamProgress
from guard.v1 import moderation_pb2


class Call(Protocol):
    """What grpc returns for a call with streams both ways."""

    def __iter__(self) -> Iterator[moderation_pb2.StreamClassifyResponse]: ...

    def cancel(self) -> bool: ...


class ClassificationStream:
    """The checks of a text that is being written. ``deltas`` is read by a thread of gRPC, as fast as the server judges.

    Iterate for every check, then ask for ``result()``; or iterate ``released()`` for nothing but text that may be
    shown. Leaving early? ``cancel()``.
    """

    def __init__(
        self,
        connect: Callable[[Iterator[moderation_pb2.StreamClassifyRequest]], Call],
        start: moderation_pb2.StreamClassifyRequest,
        deltas: Iterable[str],
    ) -> None:
        self._held = HeldText()
        self._failure: Exception | None = None
        self._connected = threading.Event()
        self._call = connect(self._steps(start, deltas))
        self._connected.set()

    def __iter__(self) -> Iterator[StreamProgress]:
        try:
            with typed_errors():
                for response in self._call:
                    progress = self._held.read(response)
                    if progress is not None:
                        yield progress
                    elif self._held.blocked:
                        break  # deltas may take their time, and the server waits for them a little
        except GuardClientError:
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            self._call.cancel()  # harmless when it has ended; the thread that reads deltas is told either way

    def result(self) -> Classification:
        """The worst of all checks; reads what is left. Raises NoAnswerError when the stream was cut off."""
        if not self._held.ended:
            for _ in self:
                pass
        return self._held.result()

    def released(self) -> Iterator[str]:
        """The text, piece by piece, as it may be shown. Raises UnsafeTextError where the rest may not."""
        for progress in self:
            if progress.text:
                yield progress.text
        if rest := self._held.rest():
            yield rest

    def cancel(self) -> None:
        """Stop judging."""
        self._call.cancel()

    def _steps(
        self, start: moderation_pb2.StreamClassifyRequest, deltas: Iterable[str]
    ) -> Iterator[moderation_pb2.StreamClassifyRequest]:
        yield start
        try:
            for delta in deltas:
                if self._held.ended:
                    return
                yield from self._held.add(delta)
        except Exception as error:  # noqa: BLE001 - the caller's own error, carried to the caller's thread
            self._failure = error
            self._connected.wait()
            self._call.cancel()  # half of a text must not be judged as if it were all
            return
        yield self._held.complete()
