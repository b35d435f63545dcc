"""GenerationService: writing text."""

from __future__ import annotations

from typing import Any

import grpc.aio

from guard.engine.sampler import SamplingParams
from guard.engine.sequence import Ticket
from guard.generation import Generation
from guard.v1 import generation_pb2, generation_pb2_grpc
from server import call, convert_generation, tickets
from server.convert_generation import GenerateRequest
from server.feed import Feed, Piece, sent
from server.registry import Registry
from server.settings import Settings
from server.tickets import Submitter

_Context = grpc.aio.ServicerContext[Any, Any]


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """The servicer; errors that it raises are mapped by ``interceptors.errors``."""

    def __init__(self, registry: Registry, submitter: Submitter, settings: Settings) -> None:
        self._registry = registry
        self._submitter = submitter
        self._settings = settings

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: generation_pb2.GenerateRequest, context: _Context
    ) -> generation_pb2.GenerateResponse:
        """The whole text at once."""
        this = call.current.get()
        name, ticket = await self._submit(request, None)
        generation = await tickets.result(ticket)
        first_token_s = _first_token_s(generation, ticket, this.started)
        return convert_generation.generate_response(generation, name, this.request_id, first_token_s, this.elapsed_s)

    async def StreamGenerate(  # noqa: N802
        self, request: generation_pb2.StreamGenerateRequest, context: _Context
    ) -> None:
        """The text while it is being written: ids first, then text, then how it ended."""
        this = call.current.get()
        feed = Feed(self._settings.max_unsent_tokens)
        name, ticket = await self._submit(request, feed)
        try:
            first = generation_pb2.StreamGenerateResponse(request_id=this.request_id, model=name)
            await sent(context.write(first), self._settings.stream_idle_s)
            pieces: list[Piece] = []
            while ready := await feed.take():
                for piece in ready:
                    await sent(context.write(convert_generation.stream_response(piece)), self._settings.stream_idle_s)
                pieces += ready
            generation = await tickets.result(ticket)
            first_token_s = _first_token_s(generation, ticket, this.started)
            for end in convert_generation.last_stream_responses(generation, pieces, first_token_s, this.elapsed_s):
                await sent(context.write(end), self._settings.stream_idle_s)
        finally:
            ticket.cancel()

    async def _submit(self, request: GenerateRequest, feed: Feed | None) -> tuple[str, Ticket[Generation]]:
        """Submit the request, its text going to ``feed``; returns the model's name and the ticket."""
        entry, generator = self._registry.instruct(request.model)
        settings, defaults = self._settings, entry.manifest.generation
        context_tokens = entry.manifest.shape.max_positions
        task = convert_generation.generate_task(
            request,
            SamplingParams(defaults.temperature, defaults.top_p, defaults.top_k) if defaults else SamplingParams(),
            default_max_tokens=min(settings.default_max_tokens, max(1, context_tokens // 2)),
            max_tokens=settings.max_tokens,
        )
        deadline = call.current.get().deadline

        def submission() -> Ticket[Generation]:
            return generator.submit(task, feed.push if feed else lambda delta: None, deadline)

        ticket = await self._submitter.submit(request.ByteSize(), submission)
        if feed is not None:
            feed.stop = ticket.cancel
            ticket.future.add_done_callback(lambda _: feed.finish())
        return entry.name, ticket


def _first_token_s(generation: Generation, ticket: Ticket[Generation], started: float) -> float:
    """Seconds from the call's arrival (``started``) to its first token; the engine counts from submission."""
    return ticket.submitted - started + generation.first_token_s
