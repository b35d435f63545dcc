"""Take a permit before any work. Each service has its own, so long generations cannot shut out short judgements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from server import call
from server.auth.quota import Quotas
from server.interceptors.around import Around, Context
from server.limits import Gate


class AdmissionInterceptor(Around):
    """``gates`` by full service name; services without one have no limit but the caller's own quota."""

    def __init__(self, gates: Mapping[str, Gate], quotas: Quotas) -> None:
        self._gates = gates
        self._quotas = quotas

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around the handler. Sets ``Call.permit``: a stream of requests has no bytes yet, its handler adds them."""
        this, size = call.current.get(), call.request_bytes(request)
        gate = self._gates.get(method.split("/")[1])
        with ExitStack() as inside:
            lease = None if this.identity is None else inside.enter_context(self._quotas.admit(this.identity, size))
            if gate is not None:
                permit = inside.enter_context(gate.admit(size, this.caller))
                permit.lease = lease
                call.current.set(replace(this, permit=permit, lease=lease))
            yield
