"""Every call has a deadline: the caller's, the default where there is none, and never more than the maximum."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from guard.errors import DeadlineError
from server import call
from server.interceptors.around import Around, Context

#: gRPC reports "no deadline" as one that is centuries away.
_NEVER_S = 1e9


class DeadlineInterceptor(Around):
    """Sets ``Call.deadline`` and ends the call when it passes. Seconds."""

    def __init__(self, default_s: float, maximum_s: float) -> None:
        self._default_s = default_s
        self._maximum_s = maximum_s

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around admission and the handler."""
        remaining: float | None = context.time_remaining()
        if remaining is None or remaining > _NEVER_S:
            remaining = self._default_s
        allowed = min(remaining, self._maximum_s)
        if allowed <= 0:
            raise DeadlineError("the deadline has passed")
        call.current.set(replace(call.current.get(), deadline=time.monotonic() + allowed))
        try:
            async with asyncio.timeout(allowed):
                yield
        except TimeoutError:
            raise DeadlineError(f"no answer within {allowed:.3g} s") from None
