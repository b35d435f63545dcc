"""One HTTP exchange: the request is judged before the upstream sees it, the answer before the client does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from guard.conversation import Message
from guard.errors import GuardError, InvalidInputError
from guard.verdict import Judgement, worst_of
from server import call
from server.ext_proc import messages, replies
from server.ext_proc.answers import answer_texts, without
from server.ext_proc.asked import Asked, read_chat, read_completion
from server.ext_proc.bodies import BodyTooLargeError, Decoder, decoded, read_body, status_of
from server.ext_proc.events import EventReader
from server.ext_proc.held import HeldStream, failed
from server.ext_proc.judge import Judge, named
from server.ext_proc.replies import Reply

UNJUDGED = "unjudged"
_READERS: dict[str, Callable[[dict[str, Any], bool], Asked]] = {
    "/chat/completions": read_chat,
    "/completions": read_completion,
}
#: Headers of an answer that are not true any more of one that was read.
_CHANGED = ("content-length", "content-encoding", "etag", "digest", "content-md5")
Send = Callable[[Any], Awaitable[None]]


class Exchange:
    """Answers what Envoy sends. ``over`` is true when Envoy has all that it will get."""

    def __init__(self, judge: Judge, send: Send, limit: int) -> None:
        """``limit``: bytes of a body after decompression, and of one event."""
        self.over = False
        self._judge, self._send, self._limit = judge, send, limit
        self._prompt_verdict = ""
        self._context: tuple[Message, ...] = ()
        self._read: Callable[[dict[str, Any], bool], Asked] = read_chat
        self._coding = ""
        self._status = 200
        self._answer_headers: dict[str, str] = {}
        self._decoder = Decoder("", limit)
        self._body: bytearray | None = None
        self._events = EventReader(limit)
        self._held: HeldStream | None = None

    @property
    def streams(self) -> bool:
        """Whether an answer passes through here that is not kept."""
        return self._held is not None

    @property
    def waiting(self) -> bool:
        """Whether written text waits to be judged."""
        return self._held is not None and self._held.waiting and not self._held.unjudged and not self.over

    async def take(self, request: Any) -> None:
        """The next message of Envoy. Raises GuardError for what Envoy must not send."""
        kind = request.WhichOneof("request")
        handler = getattr(self, f"_{kind}", None) if kind else None
        if handler is None:
            raise InvalidInputError("request", "a message of a kind that is not expected in this processing mode")
        if not self.over:
            await handler(getattr(request, kind))

    async def rest(self) -> None:
        """Nothing came for a while: judge the text that waits."""
        await self._release([], end=False, rest=True)

    def close(self, error: BaseException | None) -> None:
        """Free what is held."""
        if self._held is not None:
            self._held.close(error)

    # ------------------------------------------------------------------------------------------------ the request

    async def _request_headers(self, message: Any) -> None:
        headers = messages.headers_of(message)
        call.current.set(named(call.current.get(), headers.get(messages.REQUEST_ID, "")))
        path = headers.get(":path", "").partition("?")[0]
        self._coding = headers.get("content-encoding", "")
        reader = next((read for end, read in _READERS.items() if path.endswith(end)), None)
        if self._judge.route.shadow:
            reader = reader or read_chat
        elif reader is None or headers.get(":method") != "POST" or message.end_of_stream:
            await self._refuse(404, "This is no request that can be moderated, so it does not pass.", "not_moderated")
            return
        elif headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            await self._refuse(415, "Expected content-type application/json.", "unsupported_media_type")
            return
        self._read = reader
        asked_for = {"accept-encoding": "identity"}
        await self._send(messages.request_headers(asked_for, messages.forged(headers)))

    async def _request_body(self, message: Any) -> None:
        judgement = None
        try:
            body = read_body(decoded(message.body, self._coding, self._limit))
            asked = self._read(body, self._judge.route.all_turns)
            self._context = asked.context
            judgement = await self._judge.ask(asked.questions)
            self._prompt_verdict = replies.word(judgement)
        except InvalidInputError as error:
            if not self._judge.route.shadow:
                status, code = status_of(error)
                await self._refuse(status, str(error), code, error.field)
                return
            self._prompt_verdict = UNJUDGED
        except GuardError as error:
            if not await self._goes_on(error):
                return
            self._prompt_verdict = UNJUDGED
        if judgement is not None and self._judge.blocks(judgement):
            await self._reply(replies.blocked(judgement, self._request_id))
            return
        await self._send(messages.request_body({messages.PROMPT_VERDICT: self._prompt_verdict}))

    async def _request_trailers(self, message: Any) -> None:
        raise InvalidInputError("processing_mode.request_trailer_mode", "expected SKIP")

    # ------------------------------------------------------------------------------------------------ the answer

    async def _response_headers(self, message: Any) -> None:
        self._answer_headers = messages.headers_of(message)
        status = self._answer_headers.get(":status", "")
        self._status = int(status) if status.isdecimal() else 502
        if message.end_of_stream:
            await self._pass_headers("")
            return
        kind = self._answer_headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind not in ("application/json", "text/event-stream"):
                raise InvalidInputError("content-type", "expected application/json or text/event-stream")
            endless = kind != "application/json"
            self._decoder = Decoder(self._answer_headers.get("content-encoding", ""), self._limit, endless)
            if kind == "application/json":
                self._body = bytearray()
                return
            self._held = HeldStream(self._judge, self._context)
            await self._held.open()
        except InvalidInputError as error:
            if not await self._passes_unread(error):
                return
        except GuardError as error:
            if not await self._goes_on(error):
                return
            if self._held is not None:
                self._held.let_go([])
        await self._pass_headers(UNJUDGED if self._held is None or self._held.unjudged else "pending")

    async def _response_body(self, message: Any) -> None:
        end = message.end_of_stream
        if self._body is not None:
            await self._collect(message.body, end)
        elif self._held is not None:
            try:
                data = self._decoder.add(message.body)
                if end:
                    self._decoder.end()
                events = self._events.add(data) + (self._events.end() if end else [])
            except InvalidInputError as error:
                await self._break_off(error)
                return
            await self._release(events, end, rest=False)
        else:
            await self._send(messages.response_body(message.body, end))
            self.over = end

    async def _response_trailers(self, message: Any) -> None:
        if self._body is not None:
            await self._finish_body(ended=False)
        elif self._held is not None:
            await self._release(self._events.end(), end=True, rest=False, trailers=True)
        if not self.over:
            found = None if self._held is None else self._held.judgement
            verdict = (
                {messages.VERDICT: replies.word(found), messages.CATEGORIES: replies.codes(found)} if found else {}
            )
            await self._send(messages.response_trailers(verdict, messages.forged(messages.trailers_of(message))))
            self.over = True

    async def _collect(self, data: bytes, end: bool) -> None:
        assert self._body is not None
        self._body += data
        if len(self._body) > self._limit:
            data = bytes(self._body)
            if await self._passes_unread(BodyTooLargeError(self._limit)):
                await self._pass_headers(UNJUDGED)
                await self._send(messages.response_body(data, end))
                self.over = end
        elif end:
            await self._finish_body(ended=True)

    async def _finish_body(self, ended: bool) -> None:
        """The answer is complete: judge it and let it go, or what is left of it. ``ended``: no trailers follow."""
        raw, verdict, found = bytes(self._body or b""), UNJUDGED, None
        data = raw
        try:
            data = self._decoder.add(raw)
            self._decoder.end()
            if data:
                answer = read_body(data)
                found, blocked = await self._judge_answer(answer)
                data = replies.as_bytes(without(answer, blocked)) if blocked else data
            verdict = replies.word(found)
        except InvalidInputError as error:
            if not await self._passes_unread(error):
                return
            data = raw
        except GuardError as error:
            if not await self._goes_on(error):
                return
            data = raw
        await self._pass_headers(verdict, replies.codes(found))
        await self._send(messages.response_body(data, ended))
        self.over = ended

    async def _judge_answer(self, answer: dict[str, Any]) -> tuple[Judgement | None, list[int]]:
        """The worst judgement of the choices, and which of them are blocked."""
        found = {place: await self._judge.answer(self._context, text) for place, text in answer_texts(answer).items()}
        worst = worst_of(list(found.values()), lambda each: each) if found else None
        return worst, [place for place, judgement in found.items() if self._judge.blocks(judgement)]

    async def _release(self, events: list[Any], end: bool, rest: bool, trailers: bool = False) -> None:
        """Send what of a stream may leave by now."""
        assert self._held is not None
        try:
            if self._held.unjudged:
                data = self._held.let_go(events)
            else:
                data = await (self._held.rest() if rest else self._held.add(events))
                if end:
                    data += await self._held.end()
        except GuardError as error:
            route = self._judge.route
            if not route.fails_open or (isinstance(error, InvalidInputError) and not route.shadow):
                await self._break_off(error, end=not trailers)
                return
            call.current.get().observer.failed(error.reason)
            data = self._held.let_go([], error)
        ended = (end or self._held.blocked) and not trailers
        if data or ended:
            await self._send(messages.response_body(data, ended))
        self.over = ended

    async def _break_off(self, error: GuardError, end: bool = True) -> None:
        """A stream whose rest cannot be judged ends with an error; nothing that waits leaves."""
        call.current.get().observer.failed(error.reason)
        await self._send(messages.response_body(failed(error, self._request_id), end))
        self.close(error)
        self._held, self.over = None, end

    # ------------------------------------------------------------------------------------------------ what is told

    @property
    def _request_id(self) -> str:
        return call.current.get().request_id

    async def _pass_headers(self, verdict: str, categories: str = "") -> None:
        headers = {
            messages.PROMPT_VERDICT: self._prompt_verdict,
            messages.VERDICT: verdict,
            messages.CATEGORIES: categories,
            messages.REQUEST_ID: self._request_id,
        }
        read = verdict != UNJUDGED or self._held is not None
        remove = (*messages.forged(self._answer_headers), *(_CHANGED if read else ()))
        await self._send(messages.response_headers(headers, remove))

    async def _reply(self, reply: Reply) -> None:
        prompt = self._prompt_verdict or reply.verdict
        await self._send(messages.immediate(reply, prompt, self._request_id))
        self.over = True

    async def _refuse(self, status: int, message: str, code: str, param: str | None = None) -> None:
        await self._reply(replies.refused(status, message, code, self._request_id, param))

    async def _passes_unread(self, error: InvalidInputError) -> bool:
        """Whether an answer that cannot be read goes on as it is; if not, the client is told."""
        if self._judge.route.shadow:
            self._body = None
            return True
        await self._unreadable(error)
        return False

    async def _unreadable(self, error: InvalidInputError) -> None:
        """An answer that cannot be read does not pass; what the upstream's status says of the request does."""
        call.current.get().observer.failed(error.reason)
        status = self._status if 400 <= self._status < 500 else 502
        await self._refuse(status, f"The upstream's answer cannot be judged: {error.problem}", "answer_unreadable")

    async def _goes_on(self, error: GuardError) -> bool:
        """Whether the route lets pass what could not be judged; if not, the client is told."""
        call.current.get().observer.failed(error.reason)
        if not self._judge.route.fails_open:
            await self._reply(replies.unavailable(error.reason, self._request_id))
        return self._judge.route.fails_open
