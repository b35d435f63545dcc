"""Admission: how much work may be inside at the same time. What does not fit is refused at once, before any work.

Requests and their bytes are counted here, before anything is read; tokens, when they are known, in the engine's queue.
Known callers share the room as they share that queue (``guard.engine.fair_queue``): no one of them can take all of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from guard.engine.fair_queue import has_share
from guard.errors import OverloadedError
from server.auth.quota import Lease

#: Weight of the newest call in the running mean that tells refused callers when to come back.
_NEWEST = 0.2
_SHORTEST_RETRY_S = 0.1
_LONGEST_RETRY_S = 30.0


@dataclass(frozen=True)
class Limits:
    """Bounds over the calls that are inside: their number, and the bytes of their requests."""

    requests: int
    bytes: int


class Permit:
    """Of one call that is inside. ``bytes`` are those of its requests so far; ``lease`` counts them for its caller."""

    def __init__(self, gate: Gate, size: int, caller: str | None) -> None:
        self._gate = gate
        self._caller = caller
        self.bytes = size
        self.lease: Lease | None = None

    def add(self, size: int) -> None:
        """Count a further request of a stream; raises OverloadedError when there is no room for its bytes."""
        if self.lease is not None:
            self.lease.add(size)
        self._gate.take_bytes(size, self._caller)
        self.bytes += size

    def forget(self, size: int) -> None:
        """Of a stream that is not kept: ``size`` bytes of it have been dealt with."""
        self._gate.give_back_bytes(size, self._caller)
        self.bytes -= size


class Gate:
    """Counts what is inside. Used from the event loop's thread only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = 0
        self._bytes = 0
        self._requests_of: Counter[str] = Counter()
        self._bytes_of: Counter[str] = Counter()
        self._mean_s = 0.0

    @property
    def requests(self) -> int:
        """Calls inside."""
        return self._requests

    @property
    def bytes(self) -> int:
        """Bytes of their requests."""
        return self._bytes

    @contextmanager
    def admit(self, size: int, caller: str | None = None) -> Iterator[Permit]:
        """Let a call with a request of ``size`` bytes in until the block ends; raises OverloadedError when there is no
        room, or its caller has too large a part of it.
        """
        free = self._limits.requests - self._requests
        if free <= 0:
            raise OverloadedError(f"{self._requests} requests are being served, the limit", self._retry_after_s())
        if caller is not None and not _has_share(self._requests_of[caller], 1, free):
            inside = f"{self._requests_of[caller]} requests of this caller are being served"
            raise OverloadedError(f"{inside}, the rest of the room is for others", self._retry_after_s())
        self.take_bytes(size, caller)
        self._count(1, 0, caller)
        permit = Permit(self, size, caller)
        started = time.monotonic()
        try:
            yield permit
        finally:
            self._count(-1, -permit.bytes, caller)
            self._mean_s += _NEWEST * (time.monotonic() - started - self._mean_s)

    def take_bytes(self, size: int, caller: str | None) -> None:
        """Count ``size`` bytes more; raises OverloadedError when there is no room for them. For ``Permit``."""
        free = self._limits.bytes - self._bytes
        if size > free or (caller is not None and not _has_share(self._bytes_of[caller], size, free)):
            raise OverloadedError(f"{self._bytes} bytes of requests are being served, no room", self._retry_after_s())
        self._count(0, size, caller)

    def give_back_bytes(self, size: int, caller: str | None) -> None:
        """Count ``size`` bytes less. For ``Permit``."""
        self._count(0, -size, caller)

    def _count(self, requests: int, size: int, caller: str | None) -> None:
        self._requests += requests
        self._bytes += size
        if caller is not None:
            self._requests_of[caller] += requests
            self._bytes_of[caller] += size
            if not self._requests_of[caller] and not self._bytes_of[caller]:
                del self._requests_of[caller], self._bytes_of[caller]

    def _retry_after_s(self) -> float:
        """A call takes ``_mean_s`` from entering to leaving, so by then about everything inside now has left."""
        return min(max(self._mean_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)


def _has_share(held: int, wanted: int, free: int) -> bool:
    """Whoever has nothing inside yet may take all the room there is."""
    return not held or has_share(held, wanted, free)
