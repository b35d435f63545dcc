"""The servicer of envoy.service.ext_proc.v3.ExternalProcessor: one call for each HTTP exchange."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from guard.policies import PolicyBook
from server import call
from server.ext_proc import messages
from server.ext_proc.exchange import Exchange
from server.ext_proc.judge import Judge
from server.ext_proc.route import read_route
from server.ext_proc.v3 import external_processor_pb2_grpc
from server.feed import sent
from server.registry import Registry
from server.screening import Screener
from server.settings import Settings
from server.tickets import Submitter

#: Seconds after which streamed text is judged wherever it ends.
_LATEST_S = 1.0


class ExternalProcessor(external_processor_pb2_grpc.ExternalProcessorServicer):
    """The servicer; errors that it raises end the call, upon which Envoy answers for it (``failure_mode_allow``)."""

    def __init__(self, registry: Registry, submitter: Submitter, policies: PolicyBook, settings: Settings) -> None:
        self._registry = registry
        self._submitter = submitter
        self._screener = Screener(registry, submitter, settings.screen_rules)
        self._policies = policies
        self._settings = settings

    async def Process(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See one exchange through. It never ends well before Envoy does: Envoy would go on without it."""
        metadata: Any = context.invocation_metadata()
        route = read_route(metadata or (), self._policies, call.current.get().caller)
        judge = Judge(self._registry, self._submitter, self._screener, route, self._settings.ext_proc_timeout_s)

        async def send(response: Any) -> None:
            await sent(context.write(response), self._settings.stream_idle_s)

        exchange = Exchange(judge, send, self._settings.max_message_bytes)
        reading: asyncio.Task[Any] | None = None
        ended: BaseException | None = None
        checked = False
        try:
            while True:
                reading = reading or asyncio.create_task(_next(requests))
                done, _ = await asyncio.wait({reading}, timeout=_LATEST_S if exchange.waiting else None)
                if not done:
                    await exchange.rest()
                    continue
                request, reading = reading.result(), None
                if request is None:
                    return
                if not checked:
                    messages.check_modes(request)
                    checked = True
                await exchange.take(request)
                permit = call.current.get().permit
                if exchange.streams and permit is not None:
                    permit.forget(request.ByteSize())  # or answers that take minutes would fill the gate
        except BaseException as error:
            ended = error
            raise
        finally:
            exchange.close(ended)
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def _next(requests: AsyncIterator[Any]) -> Any:
    return await anext(requests, None)


def add_to(server: grpc.aio.Server, servicer: ExternalProcessor) -> None:
    """Serve it."""
    external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(servicer, server)
