"""Holding back a streamed answer, event by event, until the guard has judged every text in it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from guard.conversation import Message, ToolCall
from guard.errors import CancelledError, GuardError, InvalidInputError
from guard.holdback import spoken
from guard.streaming import StreamSession
from guard.verdict import Action, Judgement, worst_of
from server import call
from server.entries import Entry
from server.ext_proc.answers import CONTENT_FILTER
from server.ext_proc.events import DONE, Event
from server.ext_proc.judge import Judge
from server.ext_proc.written import CallPart, Chunk, Part, read_chunk


@dataclass
class _Text:
    """One text that is being written: a part of a choice. ``released``: characters that may leave."""

    entry: Entry
    session: StreamSession
    released: int = 0


@dataclass
class _Mark:
    """An event waits until ``text`` is released up to ``end``; None while that is not known (a call of a tool)."""

    text: _Text | None = None
    end: int | None = None

    @property
    def open(self) -> bool:
        return self.text is None or self.end is None or self.text.released < self.end


@dataclass
class _Call:
    """A call of a tool, as far as it is written, and the events that wait for it."""

    name: str = ""
    arguments: str = ""
    marks: list[_Mark] = field(default_factory=list)


@dataclass(frozen=True)
class _Waiting:
    """An event, what it waits for, and the choices that say in it why they end."""

    event: Event
    marks: list[_Mark]
    finished: tuple[int, ...] = ()


class HeldStream:
    """One answer on its way out. ``add`` events; what comes back may leave. After ``over`` nothing more does.

    Whole events leave, in their order, once all their text is judged; a call of a tool only as a whole.
    """

    def __init__(self, judge: Judge, context: tuple[Message, ...]) -> None:
        self.over = False
        self.blocked = False
        self.unjudged = False
        self._judge = judge
        self._context = context
        self._texts: dict[tuple[int, str], _Text] = {}
        self._calls: dict[tuple[int, int], _Call] = {}
        self._incoming: deque[Event] = deque()
        self._waiting: deque[_Waiting] = deque()
        self._choices: dict[int, bool] = {0: False}  # by index: whether it has said why it ends, and that has left
        self._last: dict[str, Any] = {}  # a chunk, for what all of them have in common
        self._users = ExitStack()
        self._told = False

    @property
    def waiting(self) -> bool:
        """Whether there is text that has not been judged, but could be."""
        return not self.over and any(text.session.waiting for text in self._texts.values())

    @property
    def judgement(self) -> Judgement | None:
        """The worst so far."""
        found = [found for text in self._texts.values() if (found := text.session.so_far()) is not None]
        return worst_of(found, lambda each: each) if found else None

    async def open(self) -> None:
        """Take the memory for the text of the first choice. Raises GuardError when there is no room."""
        await self._text(0, "content")

    async def add(self, events: list[Event]) -> bytes:
        """Take what was written, judge it where a check is due, and return what may leave. Raises GuardError."""
        self._incoming += events
        while self._incoming and not self.over:
            if self._incoming[0].data == DONE:
                return await self.end()
            await self._take(self._incoming[0])
            self._incoming.popleft()
        await self._check(rest=False)
        return await self._leaving()

    async def rest(self) -> bytes:
        """Judge the text there is, wherever it ends."""
        await self._check(rest=True)
        return await self._leaving()

    async def end(self) -> bytes:
        """The answer is complete: judge what is left."""
        if self.over:
            return b""
        for key in list(self._calls):
            await self._complete(key)
        await self._check(rest=False)
        await self._check(rest=True)
        if not self.blocked:
            for text in self._texts.values():
                text.released = len(text.session.text)  # what is left is white space
        leaving = await self._leaving()
        if not self.over:
            self.over = True
            await self._tell()
            leaving += Event("", DONE).bytes
        return leaving

    def let_go(self, events: list[Event], error: GuardError | None = None) -> bytes:
        """Judge no more, for a route that fails open: return what waits, and ``events``. ``error``: why."""
        if error is not None:
            self._break_off(error)
        self.unjudged = True
        leaving = [*(waits.event for waits in self._waiting), *self._incoming, *events]
        self._waiting.clear()
        self._incoming.clear()
        return b"".join(event.bytes for event in leaving)

    def close(self, error: BaseException | None = None) -> None:
        """Free what it holds; ``error``: what ended it before its time."""
        if not self.over and not self.unjudged:
            self._break_off(error or CancelledError("the exchange ended"))
        for text in self._texts.values():
            text.session.close()
        self._users.close()

    def _break_off(self, error: BaseException) -> None:
        """The observers hear how far it got, if they heard that it began."""
        for text in self._texts.values() if self._told else ():
            observer, streamed = call.current.get().observer, self._judge.streamed(text.entry)
            observer.broke_off(streamed, error, text.session.so_far(), text.session.judged_text)

    async def _take(self, event: Event) -> None:
        if not event.data:
            self._waiting.append(_Waiting(event, []))
            return
        chunk = read_chunk(event.data)
        marks = [await self._mark(part) for part in chunk.parts]
        self._note(chunk)
        for index in chunk.finished:
            for key in [key for key in self._calls if key[0] == index]:
                await self._complete(key)
        shown = Event(event.name, json.dumps(chunk.body, ensure_ascii=False, separators=(",", ":")))
        self._waiting.append(_Waiting(shown, marks, chunk.finished))

    async def _mark(self, part: Part | CallPart) -> _Mark:
        if isinstance(part, CallPart):
            so_far = self._calls.setdefault((part.choice, part.number), _Call())
            so_far.name += part.name
            so_far.arguments += part.arguments
            so_far.marks.append(_Mark())
            return so_far.marks[-1]
        text = await self._text(part.choice, part.field)
        text.session.add(part.text)
        return _Mark(text, len(text.session.text))

    async def _complete(self, key: tuple[int, int]) -> None:
        """A call of a tool is complete: its name and arguments become text to judge."""
        made = self._calls.pop(key)
        text = await self._text(key[0], "tool_calls")
        text.session.add("\n" + spoken(ToolCall("", made.name, made.arguments or "{}")) + "\n")
        for mark in made.marks:
            mark.text, mark.end = text, len(text.session.text.rstrip())

    async def _text(self, choice: int, name: str) -> _Text:
        if (choice, name) not in self._texts:
            if len(self._texts) >= _MAX_TEXTS:
                raise InvalidInputError("choices", f"more than {_MAX_TEXTS} texts in one answer")
            entry, session = await self._judge.stream(self._context)
            self._users.enter_context(entry.users)
            self._texts[choice, name] = _Text(entry, session)
        return self._texts[choice, name]

    def _note(self, chunk: Chunk) -> None:
        for index in chunk.choices:
            self._choices.setdefault(index, False)
        if "choices" in chunk.body:
            self._last = chunk.body

    async def _check(self, rest: bool) -> None:
        for text in self._texts.values():
            while not self.blocked and (check := await self._judge.check(text.session, rest)) is not None:
                text.released = check.released
                self.blocked = check.action is Action.BLOCK

    async def _leaving(self) -> bytes:
        """The events that may leave by now; after a block, with the end of the stream."""
        leaving = b""
        while self._waiting and not any(mark.open for mark in self._waiting[0].marks):
            leaves = self._waiting.popleft()
            if leaves.marks and not self._told:
                self._told = True
                entry = next(iter(self._texts.values())).entry
                await call.current.get().observer.releasing(self._judge.streamed(entry))
            leaving += leaves.event.bytes
            self._choices |= dict.fromkeys(leaves.finished, True)
        if self.blocked and not self.over:
            self.over = True
            self._waiting.clear()
            await self._tell()
            leaving += b"".join(event.bytes for event in self._cut())
        return leaving

    def _cut(self) -> Iterator[Event]:
        """What ends a stream that was blocked: each choice says why, and the end that clients wait for."""
        common = {key: self._last[key] for key in ("id", "object", "created", "model") if key in self._last}
        text = self._last.get("object") == "text_completion"
        for index, ended in sorted(self._choices.items()):
            if not ended:
                said: dict[str, Any] = {"text": ""} if text else {"delta": {}}
                choice = {"index": index, **said, "finish_reason": CONTENT_FILTER}
                yield Event("", json.dumps(common | {"choices": [choice]}))
        yield Event("", DONE)

    async def _tell(self) -> None:
        """The observers hear of every text that was judged."""
        for text in self._texts.values():
            if text.session.so_far() is not None and (self.blocked or not text.session.waiting):
                try:
                    judged = self._judge.judged(text.entry, text.session)
                except InvalidInputError:  # another text was blocked before the end of this one was judged
                    continue
                await call.current.get().observer.judged(judged)


def failed(error: GuardError, request_id: str) -> bytes:
    """The event that ends a stream whose rest could not be judged; clients raise it as an error."""
    message = f"Moderation is not available ({error.reason}); the answer ends here."
    found = {"message": message, "type": "server_error", "code": "moderation_unavailable", "request_id": request_id}
    return Event("", json.dumps({"error": found})).bytes


#: Texts of one answer that are judged at the same time; each has a KV cache of its own.
_MAX_TEXTS = 32
