"""Count and trace a call: what its handler tells its observer, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from server import call, log
from server.interceptors.around import Around, Context, code_of
from server.telemetry.telemetry import Telemetry


class TelemetryInterceptor(Around):
    """Sets ``Call.observer``; log lines of a traced call get its ids."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around everything but the access log."""
        metadata: Any = context.invocation_metadata()
        observer = self._telemetry.begin(method, metadata or ())
        if observer.span is not None:
            log.bind(observer.span.ids)
        call.current.set(replace(call.current.get(), observer=observer))
        code: grpc.StatusCode | None = grpc.StatusCode.UNKNOWN  # of what the interceptors within did not foresee
        try:
            yield
            code = None
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = None
            raise
        finally:
            code = code or code_of(context)
            observer.end(code.name, code.value[0], call.current.get())
