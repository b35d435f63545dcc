"""How much each caller may ask for: token buckets, which allow a minute's worth at once and refill steadily."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.auth.caller import Caller, Quota
from server.errors import QuotaExceededError

#: What a caller at its limit of concurrent requests is told to wait, in seconds: nobody knows when one of them ends.
_CONCURRENT_RETRY_S = 1.0


class Bucket:
    """Holds up to ``per_minute`` units and refills at that rate. It may go into debt: whoever took too much waits
    longer the next time, and one request larger than a minute's worth is served after all.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._capacity = per_minute
        self._per_second = per_minute / 60
        self._level = per_minute
        self._at = now

    def wait_s(self, needed: float, now: float) -> float:
        """Seconds until ``needed`` units are there; 0 when they are."""
        self._level = min(self._capacity, self._level + (now - self._at) * self._per_second)
        self._at = now
        return max(0.0, (needed - self._level) / self._per_second)

    def take(self, units: float) -> None:
        """Take ``units``, there or not."""
        self._level -= units


class Lease:
    """Of one call that is inside."""

    def __init__(self, account: _Account, clock: Callable[[], float]) -> None:
        self._account = account
        self._clock = clock

    def add(self, size: int) -> None:
        """Count ``size`` bytes of a further request of a stream; raises QuotaExceededError."""
        self._account.take_more(size, self._clock())

    def charge(self, tokens: int) -> None:
        """Count tokens that were computed for the call. Refuses nothing: whoever is in debt now waits the next time."""
        self._account.charge(tokens)


class _Limit:
    """So much of one thing a minute; without a limit, any amount."""

    def __init__(self, per_minute: float | None, what: str, now: float) -> None:
        self._bucket = None if per_minute is None else Bucket(per_minute, now)
        self._text = f"{per_minute:g} {what} a minute" if per_minute is not None else ""

    def check(self, now: float) -> None:
        """Raises QuotaExceededError unless there is one left."""
        if self._bucket is not None and (wait := self._bucket.wait_s(1.0, now)) > 0:
            raise QuotaExceededError(f"this caller has a limit of {self._text}", wait)

    def take(self, units: float) -> None:
        """Take them, there or not."""
        if self._bucket is not None:
            self._bucket.take(units)


class _Account:
    """What one caller has taken."""

    def __init__(self, quota: Quota, now: float, inside: int = 0) -> None:
        self.quota = quota
        self.inside = inside
        self._requests = _Limit(quota.requests_per_minute, "requests", now)
        self._bytes = _Limit(quota.bytes_per_minute, "bytes of requests", now)
        self._tokens = _Limit(quota.tokens_per_minute, "tokens", now)

    def take(self, size: int, now: float) -> None:
        """Take one request of ``size`` bytes; raises QuotaExceededError and takes nothing."""
        limit = self.quota.concurrent
        if limit is not None and self.inside >= limit:
            raise QuotaExceededError(f"{limit} requests of this caller are served, its limit", _CONCURRENT_RETRY_S)
        self._requests.check(now)
        self.take_more(size, now)
        self._requests.take(1.0)

    def take_more(self, size: int, now: float) -> None:
        """Take ``size`` bytes if a byte and a token are left; raises QuotaExceededError otherwise."""
        self._bytes.check(now)
        self._tokens.check(now)
        self._bytes.take(size)

    def charge(self, tokens: int) -> None:
        """Take ``tokens``, there or not."""
        self._tokens.take(tokens)


class Quotas:
    """The accounts of all callers. Used from the event loop's thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    @contextmanager
    def admit(self, caller: Caller, size: int) -> Iterator[Lease]:
        """Let a call of ``caller`` with a request of ``size`` bytes in until the block ends; raises QuotaExceededError,
        which says in how many seconds there is room again.
        """
        account = self._account(caller)
        account.take(size, self._clock())
        account.inside += 1
        try:
            yield Lease(account, self._clock)
        finally:
            # The file may have changed the quota meanwhile: then there is a new account, which counts this call too.
            self._accounts[caller.name].inside -= 1

    def _account(self, caller: Caller) -> _Account:
        known = self._accounts.get(caller.name)
        if known is None or known.quota != caller.quota:
            inside = 0 if known is None else known.inside
            known = self._accounts[caller.name] = _Account(caller.quota, self._clock(), inside)
        return known
