"""GenerationService: writing text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import grpc.aio

from guard.conversation import Target
from guard.engine.sampler import SamplingParams
from guard.generation import Generation
from guard.pipeline import GuardedGeneration, GuardedGenerator, guard_turns
from guard.policies import NamedPolicy, PolicyBook
from guard.v1 import generation_pb2, generation_pb2_grpc
from server import call, convert_generation, convert_guarded, convert_policy, convert_tag, tickets
from server.convert_generation import GenerateRequest
from server.feed import Feed, Piece, joined, sent
from server.observer import Judged, Streamed
from server.registry import Entry, Registry
from server.settings import Settings
from server.tickets import Submitter, Ticket

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class _Submitted:
    """A request on its way: the model that writes, and the guard and its policy if they are asked."""

    model: str
    ticket: Ticket[Any]  # of a Generation; with a guard, of a GuardedGeneration
    guard: Entry | None = None
    applied: NamedPolicy | None = None
    question: str = field(default="", repr=False)  # what the guard judges of the prompt

    async def ended(self) -> Generation:
        """Wait for it; raises what it ended with."""
        generation: Generation = await tickets.result(self.ticket)
        return generation

    async def tell(self, generation: Generation) -> None:
        """Tell the call's observer of it: of every verdict, though the call be cancelled meanwhile."""
        await asyncio.shield(asyncio.create_task(self._tell(generation)))

    async def _tell(self, generation: Generation) -> None:
        observer = call.current.get().observer
        observer.generated(generation, self.model, self.ticket.submitted, self.first_token_s(generation))
        if self.applied is not None and self.guard is not None and isinstance(generation, GuardedGeneration):
            request_id = call.current.get().request_id
            found = [(generation.input, Target.PROMPT, self.question)]
            found += zip(generation.outputs, repeat(Target.RESPONSE), generation.judged, strict=False)
            for judgement, target, text in found:
                if judgement is not None:
                    judged = Judged(judgement, target, self.applied, self.guard, request_id, text)
                    await observer.judged(judged)

    async def releasing(self) -> None:
        """Tell the call's observer that text is about to leave, if the guard was asked about it."""
        if (streamed := self._streamed()) is not None:
            await call.current.get().observer.releasing(streamed)

    def broke_off(self, error: BaseException, pieces: Sequence[Piece]) -> None:
        """Tell it that no more than ``pieces`` left, one choice at a time."""
        if (streamed := self._streamed()) is not None:
            for piece in joined(pieces):
                call.current.get().observer.broke_off(streamed, error, None, piece.text)

    def _streamed(self) -> Streamed | None:
        if self.applied is None or self.guard is None:
            return None
        return Streamed(Target.RESPONSE, self.applied, self.guard, call.current.get().request_id)

    def first_token_s(self, generation: Generation) -> float:
        """Seconds from the call's arrival to the first token; the engine counts from submission."""
        return self.ticket.submitted - call.current.get().started + generation.first_token_s

    def found(self, generation: Generation) -> generation_pb2.ModerationResult | None:
        """What the guard found; None when it was not asked."""
        if self.applied is None or self.guard is None or not isinstance(generation, GuardedGeneration):
            return None
        this, guard = call.current.get(), self.guard.name
        return convert_guarded.moderation_result(generation, self.applied, guard, this.request_id, this.elapsed_s)


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """The servicer; errors that it raises are mapped by ``interceptors.errors``."""

    def __init__(self, registry: Registry, submitter: Submitter, policies: PolicyBook, settings: Settings) -> None:
        self._registry = registry
        self._submitter = submitter
        self._policies = policies
        self._settings = settings

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: generation_pb2.GenerateRequest, context: _Context
    ) -> generation_pb2.GenerateResponse:
        """The whole text at once."""
        this = call.current.get()
        with ExitStack() as using:
            submitted = await self._submit(request, None, using)
            generation = await submitted.ended()
            await submitted.tell(generation)
        if isinstance(generation, GuardedGeneration):
            generation = generation.withheld()
        first_token_s = submitted.first_token_s(generation)
        response = convert_generation.generate_response(
            generation, submitted.model, this.request_id, first_token_s, this.elapsed_s
        )
        if (found := submitted.found(generation)) is not None:
            response.moderation.CopyFrom(found)
        return response

    async def StreamGenerate(  # noqa: N802
        self, request: generation_pb2.StreamGenerateRequest, context: _Context
    ) -> None:
        """The text while it is being written: ids first, then text, then how it ended."""
        this = call.current.get()
        feed = Feed(self._settings.max_unsent_tokens)

        async def write(response: generation_pb2.StreamGenerateResponse) -> None:
            await sent(context.write(response), self._settings.stream_idle_s)

        with ExitStack() as using:
            submitted = await self._submit(request, feed, using)
            using.callback(submitted.ticket.cancel)
            await write(generation_pb2.StreamGenerateResponse(request_id=this.request_id, model=submitted.model))
            pieces: list[Piece] = []
            try:
                while ready := await feed.take():
                    if not pieces:
                        await submitted.releasing()
                    pieces += ready
                    for piece in ready:
                        await write(convert_generation.stream_response(piece))
                generation = await submitted.ended()
            except BaseException as error:
                submitted.broke_off(error, pieces)
                raise
            await submitted.tell(generation)
            first_token_s = submitted.first_token_s(generation)
            *ends, last = convert_generation.last_stream_responses(generation, pieces, first_token_s, this.elapsed_s)
            if (found := submitted.found(generation)) is not None:
                last.moderation.CopyFrom(found)
            for end in (*ends, last):
                await write(end)

    async def Tag(  # noqa: N802
        self, request: generation_pb2.TagRequest, context: _Context
    ) -> generation_pb2.TagResponse:
        """The most likely of the labels."""
        this = call.current.get()
        entry, tagger = self._registry.tagger(request.model)
        with entry.users:
            task = convert_tag.tag_task(request, this.cache_salt)
            submission = partial(tagger.submit, task, this.deadline, this.caller or "")
            ticket = await self._submitter.submit(request.ByteSize(), submission)
            with this.charging(ticket):
                tagging = await tickets.result(ticket)
        this.observer.tagged(tagging, entry.name)
        return convert_tag.tag_response(tagging, entry.name, this.request_id, this.elapsed_s)

    async def _submit(self, request: GenerateRequest, feed: Feed | None, using: ExitStack) -> _Submitted:
        """Submit the request, its text going to ``feed``. Its models are kept until ``using`` is left."""
        this = call.current.get()
        entry, generator = self._registry.instruct(request.model)
        using.enter_context(entry.users)
        settings, defaults = self._settings, entry.manifest.generation
        context_tokens = entry.manifest.shape.max_positions
        task = convert_generation.generate_task(
            request,
            SamplingParams(defaults.temperature, defaults.top_p, defaults.top_k) if defaults else SamplingParams(),
            default_max_tokens=min(settings.default_max_tokens, max(1, context_tokens // 2)),
            max_tokens=settings.max_tokens,
            cache_salt=this.cache_salt,
        )
        push = feed.push if feed else lambda delta: None
        whom = this.deadline, this.caller or ""
        submit: Callable[[], Ticket[Any]] = partial(generator.submit, task, push, *whom)
        guard, applied, question = None, None, ""
        with convert_guarded.paths_of_the_request():
            if request.HasField("moderation"):
                applied = convert_policy.applied_policy(request.moderation, self._policies, this.caller)
                moderation = convert_guarded.moderation(request.moderation, applied.policy)
                guard, classifier = self._registry.guard(request.moderation.model)
                using.enter_context(guard.users)
                question = "".join(turn.content for turn in guard_turns(task)[-1:])
                guarded = GuardedGenerator(generator, classifier)
                submit = partial(guarded.submit, task, moderation, push, *whom)
            ticket = await self._submitter.submit(request.ByteSize(), submit)
        using.enter_context(this.charging(ticket))
        if feed is not None:
            feed.hold_back(ticket)
            ticket.future.add_done_callback(lambda _: feed.finish())
        return _Submitted(entry.name, ticket, guard, applied, question)
