"""Outermost: name the call, and write one line about it when it ends. The line has no text of the request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from server import call, log
from server.interceptors.around import Around, Context, code_of


class AccessLogInterceptor(Around):
    """Sets ``server.call.current``. Each line: method, code, request id, caller, milliseconds, bytes of the request."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around the whole call."""
        call.current.set(call.Call(method, call.new_request_id(), time.monotonic()))
        cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            this = call.current.get()  # the id comes with the decoded request, a stream's bytes as they are read
            if self._enabled:
                log.event(
                    logging.INFO,
                    "call",
                    method=method,
                    code="CANCELLED" if cancelled else code_of(context).name,
                    request_id=this.request_id,
                    caller=this.caller,
                    ms=round(this.elapsed_s * 1000, 1),
                    bytes=this.permit.bytes if this.permit else call.request_bytes(request),
                )
