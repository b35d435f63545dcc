"""Judging a message while it is being written: nothing is released before it was judged.

The text is cut at checkpoints that depend on the text alone (the end of a word after ``every_tokens`` tokens, or of a
sentence), never on how it arrives, so any split into deltas gives the same verdicts. At each checkpoint the text so far
is judged; the KV cache keeps policy, conversation and text, and only the prompt's closing is rolled back, so a
checkpoint costs its new tokens plus the closing. A text longer than a window goes on in a new, overlapping one.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from guard.conversation import Conversation, Message, Target
from guard.cutter import BYTES_PER_TOKEN, TextCutter
from guard.engine.cost import Work
from guard.engine.engine import Engine
from guard.engine.sequence import Job, Ticket
from guard.errors import CancelledError, InputTooLongError, InvalidInputError
from guard.normalize import ViewKind, views
from guard.phrases import Match
from guard.policy import Policy
from guard.prompt import GuardPrompt
from guard.reader import HeldPrompt, Reader, Reading
from guard.scan import Scanner
from guard.verdict import Action, DecidedBy, Judgement, Verdict, Window, action_for, worst_of

MIN_EVERY_TOKENS, MAX_EVERY_TOKENS = 8, 1024


@dataclass(frozen=True)
class StreamTask:
    """What is being written, after which ``context``, and how often it is judged. Raises InvalidInputError.

    The policy's deny list is searched at every check; its allow list is about whole texts and is not used.
    """

    context: tuple[Message, ...]
    target: Target
    policy: Policy
    every_tokens: int = 64
    at_sentence_ends: bool = False

    def __post_init__(self) -> None:
        if not MIN_EVERY_TOKENS <= self.every_tokens <= MAX_EVERY_TOKENS:
            raise InvalidInputError("check_every_tokens", f"expected {MIN_EVERY_TOKENS} to {MAX_EVERY_TOKENS}")


@dataclass(frozen=True)
class Check:
    """The first ``judged`` characters have been judged; the first ``released`` of them may be shown.

    After ``Action.BLOCK`` nothing more is released. ``matched_entry`` is set when the deny list decided.
    """

    reading: Reading
    action: Action
    matched_entry: str | None
    view: ViewKind
    window: Window
    forged_delimiters: bool
    judged: int
    released: int
    queue_s: float
    model_s: float


class StreamSession:
    """One message in the making: ``add`` text, run every ``next_check``, then ``check_rest`` and ``result``; ``close``
    in any case. One check at a time: the caller waits for a ticket before asking for the next. Only ``close`` may be
    called while another method runs.
    """

    def __init__(self, task: StreamTask, scanner: Scanner, reader: Reader, engine: Engine, caller: str = "") -> None:
        """Raises InvalidInputError for roles that do not alternate, OverloadedError when the KV cache has no room."""
        self._task, self._scanner, self._reader, self._engine = task, scanner, reader, engine
        self._caller = caller
        self._cutter = TextCutter(scanner.tokenizer, task.every_tokens, task.at_sentence_ends)
        self._context, self._left_out = scanner.fit_context(task.context)
        around = len(self._prompt("x").token_ids) + reader.answer_room
        longest = around + scanner.limits.window + task.every_tokens * BYTES_PER_TOKEN
        self._capacity = min(longest, reader.shape.max_positions)
        self._held: dict[ViewKind, HeldPrompt] = {}
        self._running: Ticket[Check] | None = None
        self._earlier_tokens = 0  # computed for the checks before that one
        self._closed = False
        self._lock = threading.Lock()  # over the three above
        self._text, self._tokens = "", 0
        self._window_start, self._windows = 0, 1
        self._checks: list[Check] = []
        self._hold(ViewKind.RAW)

    @property
    def text(self) -> str:
        """All that was added."""
        return self._text

    @property
    def judged_text(self) -> str:
        """What was judged so far."""
        return self._text[: self._judged]

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._earlier_tokens + (0 if self._running is None else self._running.computed_tokens)

    @property
    def waiting(self) -> bool:
        """Whether there is text, other than white space, that has not been judged."""
        return bool(self._text[self._judged :].strip())

    def add(self, text: str) -> None:
        """Append a delta. Raises InvalidInputError for one that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInputError("text", "has a lone surrogate, which is not valid Unicode") from None
        self._text += text

    def next_check(self, deadline: float | None = None) -> Ticket[Check] | None:
        """Queue the next checkpoint, if the text has reached it.

        Raises what ``Engine.submit`` raises, OverloadedError when another reading of the text needs KV memory that is
        not free, InputTooLongError for a text over the scan's limit, CancelledError after ``close``.
        """
        end = self._cutter.next(self._text, self._judged)
        return None if end is None else self._submit(end, deadline)

    def check_rest(self, deadline: float | None = None) -> Ticket[Check] | None:
        """Queue a check of all the text there is, wherever it ends, when no ``next_check`` is due; None when all of it
        has been judged. Raises as ``next_check``.
        """
        return self._submit(len(self._text), deadline) if self.waiting else None

    def result(self) -> Judgement:
        """The worst of all checks. Raises InvalidInputError when no text came, or some was not judged nor blocked."""
        found = self.so_far()
        if found is None:
            raise InvalidInputError("text", "is empty or only white space")
        if action_for(found.verdict, self._task.policy) is not Action.BLOCK and self.waiting:
            raise InvalidInputError("text", "has not been judged to its end")
        return found

    def so_far(self) -> Judgement | None:
        """The worst of the checks that were made, about ``judged_text``; None before the first."""
        if not self._checks:
            return None
        worst = worst_of(self._checks, lambda check: check.reading)
        readings = [check.reading for check in self._checks]
        return Judgement(
            verdict=worst.reading.verdict,
            unsafe_score=worst.reading.unsafe_score,
            categories=worst.reading.categories,
            mode="one_pass",
            forged_delimiters=any(check.forged_delimiters for check in self._checks),
            view=worst.view,
            window=worst.window,
            context_left_out=self._left_out,
            passes=len(readings),
            prompt_tokens=sum(reading.prompt_tokens for reading in readings),
            cached_tokens=sum(reading.cached_tokens for reading in readings),
            completion_tokens=0,
            queue_s=sum(check.queue_s for check in self._checks),
            model_s=sum(check.model_s for check in self._checks),
            decided_by=DecidedBy.MODEL if worst.matched_entry is None else DecidedBy.DENY_LIST,
            matched_entry=worst.matched_entry,
        )

    def close(self) -> None:
        """Stop the check that still runs, if one does, and give the KV memory back once it has stopped."""
        with self._lock:
            if self._closed:
                return
            self._closed, running = True, self._running
        if running is None:
            self._release()
        else:
            running.cancel()
            running.future.add_done_callback(lambda _: self._release())

    def _release(self) -> None:
        self._engine.release(len(self._held) * self._kv_bytes)
        self._held.clear()

    @property
    def _judged(self) -> int:
        return self._checks[-1].judged if self._checks else 0

    @property
    def _kv_bytes(self) -> int:
        return self._capacity * self._reader.shape.kv_bytes_per_token

    def _hold(self, kind: ViewKind) -> HeldPrompt:
        """The held prompt of one view; each has a KV cache of its own, so that views do not roll each other back."""
        with self._lock:
            self._check_open()
            if kind not in self._held:
                self._engine.hold(self._kv_bytes)
                self._held[kind] = HeldPrompt(self._reader.shape, self._capacity)
            return self._held[kind]

    def _check_open(self) -> None:
        if self._closed:
            raise CancelledError("the stream was closed")

    def _prompt(self, text: str) -> GuardPrompt:
        messages = (*self._context, Message(self._task.target.role, text))
        return self._scanner.prompts.build(Conversation(messages), self._task.target, self._task.policy)

    def _submit(self, end: int, deadline: float | None) -> Ticket[Check]:
        new_tokens = self._count_tokens(end)
        self._move_window(end)
        window = Window(self._window_start, end, self._windows - 1, self._windows)
        readings = tuple(view for view in views(self._text[window.start : end].strip()) if view.text.strip())
        denied = self._task.policy.deny.found_in(readings)
        if denied is not None:
            return Ticket.finished(self._deny(denied, window))
        passes = [(view.kind, self._fitting_prompt(view.text), self._hold(view.kind)) for view in readings]

        def job(ticket: Ticket[Check]) -> Job[Check]:
            return self._check(passes, window, ticket)

        with self._lock:
            self._check_open()
            work = Work(new_tokens * len(passes))
            self._earlier_tokens = self.computed_tokens
            self._running = self._engine.submit(job, deadline=deadline, work=work, caller=self._caller)
            return self._running

    def _count_tokens(self, end: int) -> int:
        """How many tokens the text up to ``end`` has that was not judged. Raises InputTooLongError."""
        new_tokens = len(self._scanner.tokenizer.encode_text(self._text[self._judged : end]))
        self._tokens += new_tokens
        if self._tokens > self._scanner.limits.text:
            raise InputTooLongError("text", self._tokens, self._scanner.limits.text)
        return new_tokens

    def _fitting_prompt(self, text: str) -> GuardPrompt:
        """The prompt for one reading. A window fits by its size; a reading of it may be several times as long."""
        prompt = self._prompt(text)
        tokens = len(prompt.token_ids) + self._reader.answer_room
        if tokens > self._capacity:
            raise InputTooLongError("text", tokens, self._capacity)
        return prompt

    def _move_window(self, end: int) -> None:
        """Begin a new window when the text up to ``end`` no longer fits: the overlap, then what has not been judged."""
        limits = self._scanner.limits
        if len(self._scanner.tokenizer.encode_text(self._text[self._window_start : end])) <= limits.window:
            return
        known = self._scanner.tokenizer.spans(self._text[self._window_start : self._judged])
        self._window_start += known[-limits.overlap][0] if 0 < limits.overlap < len(known) else 0
        self._windows += 1

    def _check(
        self, passes: list[tuple[ViewKind, GuardPrompt, HeldPrompt]], window: Window, ticket: Ticket[Check]
    ) -> Job[Check]:
        began = time.monotonic()
        readings: list[tuple[ViewKind, Reading]] = []
        for kind, prompt, held in passes:
            reading = yield from self._reader.read(prompt, self._task.policy, "one_pass", held)
            readings.append((kind, reading))
            if reading.verdict is Verdict.UNSAFE:
                break
        view, worst = worst_of(readings, lambda pair: pair[1])
        reading = replace(
            worst,
            prompt_tokens=sum(reading.prompt_tokens for _, reading in readings),
            cached_tokens=sum(reading.cached_tokens for _, reading in readings),
        )
        forged = any(prompt.forged_delimiters for _, prompt, _ in passes)
        return self._note(reading, view, window, forged, ticket.queue_s, time.monotonic() - began)

    def _deny(self, match: Match, window: Window) -> Check:
        reading = Reading(Verdict.UNSAFE, 1.0, (), 0, 0, 0)
        return self._note(reading, match.view, window, forged=False, queue_s=0.0, model_s=0.0, entry=match.entry)

    def _note(
        self,
        reading: Reading,
        view: ViewKind,
        window: Window,
        forged: bool,
        queue_s: float,
        model_s: float,
        entry: str | None = None,
    ) -> Check:
        action = action_for(reading.verdict, self._task.policy)
        blocked = Action.BLOCK in (action, *(check.action for check in self._checks))
        check = Check(
            reading=reading,
            action=action,
            matched_entry=entry,
            view=view,
            window=window,
            forged_delimiters=forged,
            judged=window.end,
            released=self._released if blocked else window.end,
            queue_s=queue_s,
            model_s=model_s,
        )
        self._checks.append(check)
        return check

    @property
    def _released(self) -> int:
        return self._checks[-1].released if self._checks else 0
