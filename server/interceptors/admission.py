"""Take a permit before any work. Each service has its own, so long generations cannot shut out short judgements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from server import call
from server.interceptors.around import Around, Context
from server.limits import Gate


class AdmissionInterceptor(Around):
    """``gates`` by full service name; services without one are not limited."""

    def __init__(self, gates: Mapping[str, Gate]) -> None:
        self._gates = gates

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around the handler. Sets ``Call.permit``: a stream of requests has no bytes yet, its handler adds them."""
        gate = self._gates.get(method.split("/")[1])
        if gate is None:
            yield
            return
        with gate.admit(call.request_bytes(request)) as permit:
            call.current.set(replace(call.current.get(), permit=permit))
            yield
