"""StreamClassify: a message is judged while it is being written; text is released only after a check found it safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio

from guard.engine.sequence import Ticket
from guard.errors import GuardError, InvalidInputError
from guard.policies import PolicyBook
from guard.streaming import Check, StreamSession
from guard.v1 import moderation_pb2
from guard.verdict import Action
from server import call, convert, convert_policy, tickets
from server.errors import IdleStreamError
from server.feed import sent
from server.observer import Judged, Streamed
from server.registry import Registry
from server.tickets import Submitter

MAX_PIECE_BYTES = 64 << 10
_LINGER_S = 2.0
#: Who sends nothing for so long waits for an answer, and should get a refusal soon.
_QUIET_S = 0.02
Step = moderation_pb2.StreamClassifyRequest
Context = grpc.aio.ServicerContext[Any, Any]


class Steps:
    """What the client sends. At most one step is read ahead, so a client that is too fast waits; a wait for a step that
    is given up loses none.
    """

    def __init__(self, requests: AsyncIterator[Step], idle_s: float) -> None:
        self._requests = requests
        self._idle_s = idle_s
        self._reading: asyncio.Task[Step | None] | None = None

    async def start(self) -> moderation_pb2.StreamClassifyStart:
        """The first step."""
        step = await self._next(None)
        if step is None or step.WhichOneof("step") != "start":
            raise InvalidInputError("start", "is required as the first step")
        return step.start

    async def text(self, within_s: float | None) -> str | None:
        """The next piece of text, None at its end. Raises TimeoutError after ``within_s`` seconds, IdleStreamError when
        nothing came for too long, InvalidInputError for a step that does not belong here.
        """
        if within_s is not None and within_s <= 0:
            raise TimeoutError
        step = await self._next(within_s)
        if step is None or step.WhichOneof("step") == "finish":
            return None
        if step.WhichOneof("step") == "start":
            raise InvalidInputError("start", "may only be the first step")
        if step.WhichOneof("step") is None:
            raise InvalidInputError("step", "is required")
        size = len(step.text.encode())
        if size > MAX_PIECE_BYTES:
            raise InvalidInputError("text", f"a piece of {size} bytes, the limit is {MAX_PIECE_BYTES}")
        return step.text

    def read_ahead(self) -> asyncio.Task[Step | None]:
        """Begin to read the next step."""
        self._reading = self._reading or asyncio.create_task(self._read())
        return self._reading

    def check_nothing_follows(self) -> None:
        """Raises InvalidInputError when a further step has arrived; ``read_ahead`` must have been called."""
        if self._reading is not None and self._reading.done() and (step := self._reading.result()) is not None:
            raise InvalidInputError(step.WhichOneof("step") or "step", "comes after finish")

    async def ignore_rest(self, context: Context, quiet_s: float | None = None) -> None:
        """Drop what is still on its way, until the client closes its side or, with ``quiet_s``, sends nothing for so
        many seconds; but not for long. Neither parsed nor counted: nobody wants it.

        Whatever the stream ends with can be lost at a client that is writing: grpc.aio then fails the call as a whole,
        with an INTERNAL of its own (grpc/grpc#36066).
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while True:
                    async with asyncio.timeout(quiet_s):
                        if not await self._anything(context):
                            return

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _next(self, within_s: float | None) -> Step | None:
        reading = self.read_ahead()
        timeout = self._idle_s if within_s is None else min(within_s, self._idle_s)
        done, _ = await asyncio.wait({reading}, timeout=timeout)
        if not done and within_s is not None and within_s <= self._idle_s:
            raise TimeoutError
        if not done:
            raise IdleStreamError(f"nothing was sent for {self._idle_s:g} s")
        self._reading = None
        return reading.result()

    async def _read(self) -> Step | None:
        return await anext(self._requests, None)

    async def _anything(self, context: Context) -> bool:
        """Wait for what comes next; False when it is the end."""
        if self._reading is None:
            return await context.read() is not grpc.aio.EOF
        await asyncio.wait({self._reading})
        reading, self._reading = self._reading, None
        return reading.exception() is not None or reading.result() is not None


class StreamJudge:
    """One call of StreamClassify."""

    def __init__(
        self,
        steps: Steps,
        context: Context,
        registry: Registry,
        submitter: Submitter,
        policies: PolicyBook,
        idle_s: float,
    ) -> None:
        self._steps = steps
        self._context = context
        self._registry = registry
        self._submitter = submitter
        self._policies = policies
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._longest_wait_s: float | None = None
        self._waiting_since: float | None = None  # loop time; None while all text is judged
        self._streamed: Streamed
        self._checks = 0
        self._judged = 0  # characters
        self._judged_bytes = 0
        self._released_bytes = 0

    async def run(self) -> None:
        """Read, judge and answer until the text is complete or blocked."""
        try:
            await self._run()
        except GuardError:
            await self._steps.ignore_rest(self._context, _QUIET_S)
            raise

    async def _run(self) -> None:
        start = await self._steps.start()
        convert.check_request_id(start.request_id)
        if start.request_id:
            call.current.set(replace(call.current.get(), request_id=start.request_id))
        applied = convert_policy.applied_policy(start, self._policies, call.current.get().caller)
        task = convert.stream_task(start, applied.policy)
        self._longest_wait_s = convert.longest_wait_s(start)
        entry, classifier = self._registry.guard(start.model)
        with entry.users:
            begin = partial(classifier.stream, task, call.current.get().caller or "")
            session = await self._submitter.run(start.ByteSize(), begin, StreamSession.close)
            try:
                # A client that waits for this before it sends text is told in time when there is no room for it.
                await sent(self._context.send_initial_metadata(()), self._idle_s)
                self._streamed = Streamed(task.target, applied, entry, call.current.get().request_id)
                complete = await self._judge(session)
                judgement = session.result()
            except BaseException as error:
                if self._checks:
                    observer = call.current.get().observer
                    observer.broke_off(self._streamed, error, session.so_far(), session.judged_text)
                raise
            finally:
                session.close()
        this = call.current.get()
        await this.observer.judged(Judged(judgement, task.target, applied, entry, this.request_id, session.text))
        result = convert.classify_response(judgement, task.target, applied, entry.name, this.request_id, this.elapsed_s)
        await self._send(moderation_pb2.StreamClassifyResponse(result=result))
        if not complete:
            await self._steps.ignore_rest(self._context)

    async def _judge(self, session: StreamSession) -> bool:
        """Make every check of the text, up to the first that blocks it; returns whether the text is complete."""
        complete = False
        while not complete:
            try:
                text = await self._steps.text(self._time_left())
            except TimeoutError:
                if await self._check(session, session.check_rest) is Action.BLOCK:
                    return False
                continue
            complete = text is None
            if text is not None:
                session.add(text)
                self._note_waiting(session)
            while (action := await self._check(session, session.next_check)) is not None:
                if action is Action.BLOCK:
                    return complete
        self._steps.read_ahead()
        await self._check(session, session.check_rest)
        self._steps.check_nothing_follows()
        return True

    async def _check(
        self, session: StreamSession, queue: Callable[[float | None], Ticket[Check] | None]
    ) -> Action | None:
        """Make one check, if one is due, and tell the client; returns what to do."""
        deadline = call.current.get().deadline
        # A ticket that nobody waits for any more is cancelled when the session is closed.
        ticket = await self._submitter.run(0, partial(queue, deadline), lambda _: None)
        if ticket is None:
            return None
        with call.current.get().charging(ticket):
            check = await tickets.result(ticket)
        if not self._checks:
            await call.current.get().observer.releasing(self._streamed)
        self._checks += 1
        self._judged_bytes += len(session.text[self._judged : check.judged].encode())
        self._judged = check.judged
        if check.released == check.judged:
            self._released_bytes = self._judged_bytes
        self._waiting_since = None
        self._note_waiting(session)
        progress = convert.stream_progress(check, self._checks, self._judged_bytes, self._released_bytes)
        await self._send(moderation_pb2.StreamClassifyResponse(progress=progress))
        return check.action

    def _note_waiting(self, session: StreamSession) -> None:
        if self._waiting_since is None and session.waiting:
            self._waiting_since = self._loop.time()

    def _time_left(self) -> float | None:
        """Seconds until the text that waits is judged wherever it ends; None when it is not."""
        if self._longest_wait_s is None or self._waiting_since is None:
            return None
        return max(0.0, self._waiting_since + self._longest_wait_s - self._loop.time())

    async def _send(self, response: moderation_pb2.StreamClassifyResponse) -> None:
        await sent(self._context.write(response), self._idle_s)
