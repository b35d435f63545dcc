"""ModerationService: judging conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio

from guard.cascade import Screening
from guard.errors import GuardError, InvalidInputError
from guard.policies import NamedPolicy, PolicyBook
from guard.v1 import moderation_pb2, moderation_pb2_grpc
from server import call, convert, convert_policy, status, tickets
from server.call import Call
from server.observer import Judged
from server.registry import Registry
from server.screening import Screener
from server.settings import Settings
from server.streaming import Steps, StreamJudge
from server.tickets import Submitter

MAX_BATCH = 1024
#: Items of one batch in the engine at a time: enough to keep it busy, few enough to leave room in its queue for others.
_BATCH_WINDOW = 4
_Context = grpc.aio.ServicerContext[Any, Any]


class ModerationService(moderation_pb2_grpc.ModerationServiceServicer):
    """The servicer; errors that it raises are mapped by ``interceptors.errors``."""

    def __init__(self, registry: Registry, submitter: Submitter, policies: PolicyBook, settings: Settings) -> None:
        self._screener = Screener(registry, submitter, settings.screen_rules)
        self._registry = registry
        self._submitter = submitter
        self._policies = policies
        self._idle_s = settings.stream_idle_s

    async def Classify(  # noqa: N802 - gRPC's name
        self, request: moderation_pb2.ClassifyRequest, context: _Context
    ) -> moderation_pb2.ClassifyResponse:
        """One judgement."""
        return await self._classify(request, call.current.get())

    async def BatchClassify(  # noqa: N802
        self, request: moderation_pb2.BatchClassifyRequest, context: _Context
    ) -> moderation_pb2.BatchClassifyResponse:
        """One outcome an item: a few items are in the engine at a time, in order."""
        this = call.current.get()
        convert.check_request_id(request.request_id)
        if not 1 <= len(request.requests) <= MAX_BATCH:
            raise InvalidInputError("requests", f"{len(request.requests)} items, expected 1 to {MAX_BATCH}")
        window = asyncio.Semaphore(_BATCH_WINDOW)

        async def item(index: int, question: moderation_pb2.ClassifyRequest) -> moderation_pb2.BatchClassifyResult:
            async with window:
                own_id = (
                    question.request_id if call.is_request_id(question.request_id) else f"{this.request_id}.{index}"
                )
                return await self._outcome(question, replace(this, request_id=own_id))

        async with asyncio.TaskGroup() as group:
            items = [group.create_task(item(*numbered)) for numbered in enumerate(request.requests)]
        return moderation_pb2.BatchClassifyResponse(
            request_id=this.request_id,
            results=[task.result() for task in items],
            timings=moderation_pb2.Timings(total=status.duration(this.elapsed_s)),
        )

    async def StreamClassify(  # noqa: N802
        self, requests: AsyncIterator[moderation_pb2.StreamClassifyRequest], context: _Context
    ) -> None:
        """The checks of a message while it is being written, then its judgement."""
        steps = Steps(requests, self._idle_s)
        try:
            await StreamJudge(steps, context, self._registry, self._submitter, self._policies, self._idle_s).run()
        finally:
            await steps.close()

    async def ListPolicies(  # noqa: N802
        self, request: moderation_pb2.ListPoliciesRequest, context: _Context
    ) -> moderation_pb2.ListPoliciesResponse:
        """All policies, in the order of their names."""
        default = self._policies.policy_for(call.current.get().caller).name
        return moderation_pb2.ListPoliciesResponse(
            policies=[
                convert_policy.named_policy(NamedPolicy(name, policy), is_default=name == default)
                for name, policy in sorted(self._policies.policies.items())
            ]
        )

    async def _outcome(self, request: moderation_pb2.ClassifyRequest, this: Call) -> moderation_pb2.BatchClassifyResult:
        try:
            return moderation_pb2.BatchClassifyResult(response=await self._classify(request, this))
        except GuardError as error:
            this.observer.failed(error.reason)
            found = status.failure(error, this.request_id)
            return moderation_pb2.BatchClassifyResult(error=status.item_error(found))

    async def _classify(self, request: moderation_pb2.ClassifyRequest, this: Call) -> moderation_pb2.ClassifyResponse:
        applied = convert_policy.applied_policy(request, self._policies, this.caller)
        task = convert.classify_task(request, applied.policy, this.cache_salt)
        entry, classifier = self._registry.guard(request.model)
        with entry.users:
            screening, screened = Screening.NOT_ASKED, None
            if not request.model:  # who names a model gets that model's answer
                screening, screened = await self._screener.ask(task, request.ByteSize(), this)
            if screened is not None:
                entry, judgement = screened
            else:
                submission = partial(classifier.submit, task, this.deadline, caller=this.caller or "")
                ticket = await self._submitter.submit(request.ByteSize(), submission)
                with this.charging(ticket):
                    judgement = await tickets.result(ticket)
        text = task.conversation.messages[-1].content
        await this.observer.judged(Judged(judgement, task.target, applied, entry, this.request_id, text))
        response = convert.classify_response(
            judgement, task.target, applied, entry.name, this.request_id, this.elapsed_s
        )
        response.screening = convert.SCREENINGS[screening]
        return response
