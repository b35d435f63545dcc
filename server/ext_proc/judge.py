"""Judging for one HTTP exchange, with the classifier, the queues and the observers that every other call has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from guard.classifier import ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.sequence import Ticket
from guard.errors import DeadlineError
from guard.streaming import Check, StreamSession, StreamTask
from guard.verdict import Action, Judgement, Verdict, action_for
from server import call, tickets
from server.ext_proc.asked import Question
from server.ext_proc.route import Route
from server.observer import Judged, Streamed
from server.registry import Entry, Registry
from server.screening import Screener
from server.tickets import Submitter

T = TypeVar("T")


class Judge:
    """Judges under one route's policy. An answer that takes longer than ``timeout_s`` seconds is DeadlineError."""

    def __init__(
        self, registry: Registry, submitter: Submitter, screener: Screener, route: Route, timeout_s: float
    ) -> None:
        self._registry = registry
        self._submitter = submitter
        self._screener = screener
        self._timeout_s = timeout_s
        self.route = route

    async def ask(self, questions: Iterable[Question]) -> Judgement | None:
        """Judge one after the other, up to the first that the policy blocks; returns that or else the worst.

        None without a question. Raises GuardError for whatever keeps it from judging all.
        """
        return await self._in_time(self._ask(questions))

    async def answer(self, context: tuple[Message, ...], text: str) -> Judgement:
        """Judge what the model answered after ``context``. Raises as ``ask``."""
        conversation = Conversation((*context, Message(Role.ASSISTANT, text)))
        return await self._in_time(self._judge(Question(conversation, Target.RESPONSE)))

    async def stream(self, context: tuple[Message, ...]) -> tuple[Entry, StreamSession]:
        """A session for an answer that is being written; whoever takes it closes it, and is a user of the entry."""
        entry, classifier = self._registry.guard("")
        task = StreamTask(context, Target.RESPONSE, self.route.applied.policy, at_sentence_ends=True)
        begin = partial(classifier.stream, task, call.current.get().caller or "")
        return entry, await self._in_time(self._submitter.run(0, begin, StreamSession.close))

    async def check(self, session: StreamSession, rest: bool) -> Check | None:
        """Make the next check of a stream if one is due; with ``rest``, of all its text. Raises as ``ask``."""
        return await self._in_time(self._check(session, rest))

    def streamed(self, entry: Entry) -> Streamed:
        """What observers are told about an answer that leaves before all of it is judged."""
        return Streamed(Target.RESPONSE, self.route.applied, entry, call.current.get().request_id)

    def judged(self, entry: Entry, session: StreamSession) -> Judged:
        """What observers are told at the end of one."""
        request_id = call.current.get().request_id
        return Judged(session.result(), Target.RESPONSE, self.route.applied, entry, request_id, session.text)

    def blocks(self, judgement: Judgement | None) -> bool:
        """Whether the policy wants a text stopped that was judged so."""
        return judgement is not None and action_for(judgement.verdict, self.route.applied.policy) is Action.BLOCK

    async def _ask(self, questions: Iterable[Question]) -> Judgement | None:
        worst: Judgement | None = None
        for question in questions:
            found = await self._judge(question)
            if self.blocks(found):
                return found
            if worst is None or _rank(found) > _rank(worst):
                worst = found
        return worst

    async def _judge(self, question: Question) -> Judgement:
        this = call.current.get()
        applied = self.route.applied
        task = ClassifyTask(question.conversation, question.target, applied.policy, cache_salt=this.cache_salt)
        size = sum(len(message.content) for message in question.conversation.messages)
        entry, classifier = self._registry.guard("")
        with entry.users:
            _, screened = await self._screener.ask(task, size, this)
            if screened is not None:
                entry, judgement = screened
            else:
                submission = partial(classifier.submit, task, self._deadline(), caller=this.caller or "")
                ticket = await self._submitter.submit(size, submission)
                with this.charging(ticket):
                    judgement = await tickets.result(ticket)
        text = question.conversation.messages[-1].content
        await this.observer.judged(Judged(judgement, question.target, applied, entry, this.request_id, text))
        return judgement

    async def _check(self, session: StreamSession, rest: bool) -> Check | None:
        queue = session.check_rest if rest else session.next_check
        ticket: Ticket[Check] | None = await self._submitter.run(0, partial(queue, self._deadline()), lambda _: None)
        if ticket is None:
            return None
        with call.current.get().charging(ticket):
            return await tickets.result(ticket)

    def _deadline(self) -> float:
        ours, its = time.monotonic() + self._timeout_s, call.current.get().deadline
        return ours if its is None else min(ours, its)

    async def _in_time(self, judging: Awaitable[T]) -> T:
        """The engine drops what is late before its next step; a step that hangs is noticed here."""
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                return await judging
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineError(f"no judgement within {self._timeout_s:.3g} s") from None


def named(this: call.Call, request_id: str) -> call.Call:
    """The same call under the id of the HTTP request it is about, if that may be one."""
    return replace(this, request_id=request_id) if call.is_request_id(request_id) else this


def _rank(judgement: Judgement) -> tuple[bool, float]:
    return judgement.verdict is Verdict.UNSAFE, judgement.unsafe_score
