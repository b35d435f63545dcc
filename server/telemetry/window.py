"""The last minutes in a few numbers, for a page or a person without a Prometheus."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
SECONDS = 300.0
#: Of each kind at most so many of the newest count, so that memory is bounded: some hundred kilobytes.
_MOST = 10_000
#: What the caller did, or has to change: no failure of the server.
_CALLERS_DOING = frozenset(
    {
        "CANCELLED",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "UNIMPLEMENTED",
        "OUT_OF_RANGE",
    }
)


class _Recent(Generic[T]):
    """Values of the last ``SECONDS``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._values: deque[tuple[float, T]] = deque(maxlen=_MOST)

    def add(self, value: T) -> None:
        self._values.append((self._clock(), value))

    def values(self) -> list[T]:
        oldest = self._clock() - SECONDS
        return [value for when, value in tuple(self._values) if when >= oldest]


class Window:
    """The event loop's thread adds, any thread may ask for the ``summary``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._codes: _Recent[str] = _Recent(clock)
        self._call_s: _Recent[float] = _Recent(clock)
        self._first_token_s: _Recent[float] = _Recent(clock)
        self._tokens_per_second: _Recent[float] = _Recent(clock)
        self._verdicts: _Recent[str] = _Recent(clock)

    def called(self, code: str, seconds: float) -> None:
        """A call ended with the status ``code``."""
        self._codes.add(code)
        self._call_s.add(seconds)

    def generated(self, first_token_s: float, tokens_per_second: float) -> None:
        """A text was written; 0 tokens a second is not known."""
        self._first_token_s.add(first_token_s)
        if tokens_per_second:
            self._tokens_per_second.add(tokens_per_second)

    def judged(self, verdict: str) -> None:
        """A verdict was reached."""
        self._verdicts.add(verdict)

    def summary(self) -> dict[str, Any]:
        """What ``/stats`` shows. ``success_rate``: of the calls that did not fail by their caller's doing, the share
        that ended OK; null when there were none.
        """
        codes = Counter(self._codes.values())
        counted = sum(count for code, count in codes.items() if code not in _CALLERS_DOING)
        return {
            "window_s": SECONDS,
            "calls": codes.total(),
            "codes": dict(sorted(codes.items())),
            "success_rate": codes["OK"] / counted if counted else None,
            "call_s": _quantiles(self._call_s.values()),
            "time_to_first_token_s": _quantiles(self._first_token_s.values()),
            "tokens_per_second": _quantiles(self._tokens_per_second.values()),
            "verdicts": dict(sorted(Counter(self._verdicts.values()).items())),
        }


def _quantiles(values: list[float]) -> dict[str, float | int | None]:
    ordered = sorted(values)
    return {"count": len(ordered), "p50": quantile(ordered, 0.5), "p95": quantile(ordered, 0.95)}


def quantile(ordered: list[float], part: float) -> float | None:
    """The smallest of the ascending values that at least ``part`` of them do not exceed; None when there are none."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None
