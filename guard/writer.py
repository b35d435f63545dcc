"""One text in the making: from logits to tokens, from tokens to text that may be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guard.conversation import ToolCall
from guard.engine.sampler import Sampler, logprobs
from guard.engine.sequence import Float32
from guard.generation import Alternative, Choice, Constraint, Delta, FinishReason, GenerateTask, TokenLogprob
from guard.lookup import PromptLookup
from guard.stops import StopMatcher
from guard.tokenizer import Tokenizer
from guard.tools.stream import ToolReader


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens mean, and which of them end a text."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]


class Writer:
    """Writes choice number ``index`` of a task until ``done``; ``release`` gets what may be shown."""

    def __init__(
        self,
        task: GenerateTask,
        index: int,
        vocabulary: Vocabulary,
        sampler: Sampler,
        constraint: Constraint | None,
        lookup: PromptLookup | None,
        release: Callable[[Delta], None],
    ) -> None:
        self.done = False
        self.token = -1
        self._task, self._index, self._vocabulary = task, index, vocabulary
        self._sampler, self._constraint, self.lookup = sampler, constraint, lookup
        self._release = release
        self._decoder = vocabulary.tokenizer.stream_decoder()
        self._stops = StopMatcher(task.stop)
        self._tools = ToolReader(task.tools, task.tool_choice)
        self._count = 0
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._unreleased: list[TokenLogprob] = []
        self._reason = FinishReason.LENGTH

    def draft(self) -> tuple[int, ...]:
        """What may follow ``token``, for the model to check at once."""
        return self.lookup.draft(self._task.max_tokens - self._count - 1) if self.lookup is not None else ()

    def take(self, logits: Float32, draft: tuple[int, ...] = ()) -> int:
        """Choose the next token from ``logits`` [1 + len(draft), rows], and those after it as long as they are what
        ``draft`` says; returns how many of the draft were right. ``token`` is the last one chosen.

        A draft is a point distribution, so keeping what sampling would have chosen anyway is exact (Leviathan et al.,
        "Fast Inference from Transformers via Speculative Decoding", ICML 2023): the text is the same as without.
        """
        right = 0
        self._step(logits[0])
        while not self.done and right < len(draft) and self.token == draft[right]:
            right += 1
            self._step(logits[right])
        if self.lookup is not None and draft:
            self.lookup.note(len(draft), right)
        return right

    def finish(self) -> Choice:
        """The finished text, after its last piece was released. Raises ModelOutputError for one that had to call tools
        and does not.
        """
        self._show(self._stops.flush())
        left, calls = self._tools.finish(complete=self._reason is FinishReason.STOP)
        self._emit(left, calls)
        reason = FinishReason.TOOL_CALLS if calls else self._reason
        return Choice("".join(self._text), reason, self._count, calls, tuple(self._logprobs))

    def _step(self, logits: Float32) -> None:
        allowed = None if self._constraint is None else self._constraint.allowed()
        self.token = self._sampler.choose(logits, allowed)
        self._count += 1
        stopped = self.token in self._vocabulary.stop_ids
        if self._task.logprobs is not None and not stopped:
            self._note_logprobs(logits)
        if stopped:
            self._end(FinishReason.STOP)
            return
        if self._constraint is not None:
            self._constraint.accept(self.token)
        if self.lookup is not None:
            self.lookup.add(self.token)
        self._show(self._stops.feed(self._decoder.step(self.token)))
        if self._stops.matched:
            self._end(FinishReason.STOP_SEQUENCE)
        elif self._count == self._task.max_tokens:
            self._end(FinishReason.LENGTH)

    def _end(self, reason: FinishReason) -> None:
        self.done, self._reason = True, reason

    def _show(self, text: str) -> None:
        self._emit(self._tools.feed(text), ())

    def _emit(self, text: str, calls: tuple[ToolCall, ...]) -> None:
        if text or calls:
            self._text.append(text)
            self._release(Delta(text, self._count, self._index, tuple(self._unreleased), calls))
            self._unreleased.clear()

    def _note_logprobs(self, logits: Float32) -> None:
        own, top = logprobs(logits, self.token, self._task.logprobs or 0)
        text = self._vocabulary.tokenizer.decode
        alternatives = tuple(Alternative(other, text([other]), value) for other, value in top)
        noted = TokenLogprob(self.token, text([self.token]), own, alternatives)
        self._logprobs.append(noted)
        self._unreleased.append(noted)
