"""What a judgement reads: every view of the judged text, in windows that fit; nothing is cut off in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guard.conversation import Conversation, Message, Target, check_moderation_turns
from guard.errors import InputTooLongError
from guard.normalize import ViewKind, views
from guard.policy import Policy
from guard.prompt import GuardPrompt, GuardPromptBuilder
from guard.tokenizer import Tokenizer
from guard.verdict import Window


@dataclass(frozen=True)
class ScanLimits:
    """Tokens. A judged text of more than ``window`` is read in windows that overlap by ``overlap``; of the messages
    before it, the most recent that fit in ``context`` are shown to the model. ``text`` bounds the judged text itself.
    """

    window: int = 1024
    overlap: int = 128
    context: int = 1024
    text: int = 131_072

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.window <= self.text or self.context < 0:
            raise ValueError("expected 0 <= overlap < window <= text and 0 <= context")


@dataclass(frozen=True)
class Pass:
    """One prompt to judge. ``context_left_out`` counts the earliest messages that did not fit before the judged one."""

    view: ViewKind
    window: Window
    prompt: GuardPrompt
    context_left_out: int


class Scanner:
    """Plans the passes of one guard model."""

    def __init__(self, prompts: GuardPromptBuilder, tokenizer: Tokenizer, limits: ScanLimits) -> None:
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.limits = limits

    def plan(self, conversation: Conversation, target: Target, policy: Policy) -> tuple[Pass, ...]:
        """At least one pass; the text itself comes before its other views.

        Raises what ``GuardPromptBuilder.build`` raises, and InputTooLongError for a judged text over the limit.
        """
        check_moderation_turns(conversation, target)
        judged = conversation.messages[-1]
        context, left_out = self.fit_context(conversation.messages[:-1])
        passes = []
        for view in views(judged.content.strip()):
            for window in self._windows(view.text):
                piece = view.text[window.start : window.end]
                if piece.strip():
                    messages = (*context, Message(judged.role, piece))
                    prompt = self.prompts.build(Conversation(messages), target, policy)
                    passes.append(Pass(view.kind, window, prompt, left_out))
        return tuple(passes)

    def fit_context(self, earlier: tuple[Message, ...]) -> tuple[tuple[Message, ...], int]:
        """The most recent messages that fit together, whole, and how many earlier ones do not."""
        room, kept = self.limits.context, 0
        for message in reversed(earlier):
            room -= len(self.tokenizer.encode_text(message.content))
            if room < 0:
                break
            kept += 1
        return earlier[len(earlier) - kept :], len(earlier) - kept

    def _windows(self, text: str) -> Iterator[Window]:
        spans = self.tokenizer.spans(text)
        limits = self.limits
        if len(spans) > limits.text:
            raise InputTooLongError("messages", len(spans), limits.text)
        if len(spans) <= limits.window:
            yield Window(0, len(text), 0, 1)
            return
        starts = range(0, len(spans) - limits.overlap, limits.window - limits.overlap)
        for index, first in enumerate(starts):
            last = min(first + limits.window, len(spans)) - 1
            # A character of several tokens belongs to each of them, so no window begins or ends inside one.
            yield Window(spans[first][0], spans[last][1], index, len(starts))
