"""Admission: how much work may be inside at the same time. What does not fit is refused at once, before any work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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

    def __init__(self, gate: Gate, size: int) -> None:
        self._gate = gate
        self.bytes = size
        self.lease: Lease | None = None

    def add(self, size: int) -> None:
        """Count a further request of a stream; raises OverloadedError when there is no room for its bytes."""
        if self.lease is not None:
            self.lease.add(size)
        self._gate.take_bytes(size)
        self.bytes += size


class Gate:
    """Counts what is inside. Used from the event loop's thread only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = 0
        self._bytes = 0
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
    def admit(self, size: int) -> Iterator[Permit]:
        """Let a call with a request of ``size`` bytes in until the block ends; raises OverloadedError when full."""
        if self._requests >= self._limits.requests:
            raise OverloadedError(f"{self._requests} requests are being served, the limit", self._retry_after_s())
        self.take_bytes(size)
        self._requests += 1
        permit = Permit(self, size)
        started = time.monotonic()
        try:
            yield permit
        finally:
            self._requests -= 1
            self._bytes -= permit.bytes
            self._mean_s += _NEWEST * (time.monotonic() - started - self._mean_s)

    def take_bytes(self, size: int) -> None:
        """Count ``size`` bytes more; raises OverloadedError when there is no room for them. For ``Permit``."""
        if self._bytes + size > self._limits.bytes:
            raise OverloadedError(f"{self._bytes} bytes of requests are being served, no room", self._retry_after_s())
        self._bytes += size

    def _retry_after_s(self) -> float:
        """A call takes ``_mean_s`` from entering to leaving, so by then about everything inside now has left."""
        return min(max(self._mean_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
