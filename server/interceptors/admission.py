"""Take a permit before any work. Each service has its own, so long generations cannot shut out short judgements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from server.interceptors.around import Around, Context
from server.limits import Gate


class AdmissionInterceptor(Around):
    """``gates`` by full service name; services without one are not limited."""

    def __init__(self, gates: Mapping[str, Gate]) -> None:
        self._gates = gates

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around the handler. A stream of requests counts as one call of no bytes: its messages come later."""
        gate = self._gates.get(method.split("/")[1])
        if gate is None:
            yield
            return
        with gate.admit(request.ByteSize() if hasattr(request, "ByteSize") else 0):
            yield
