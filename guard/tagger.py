"""Choosing one of several labels for a text in one pass of an instruct model, with probabilities.

The prompt ends where the model would write the label; a label's score is the probability of its tokens there. What the
model prefers before it has read any text is taken out: contextual calibration, Zhao et al., "Calibrate Before Use:
Improving Few-Shot Performance of Language Models", ICML 2021. The prompt and the method were chosen by experiment
(docs/decisions/0081-tagging.md).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt

from guard.conversation import Conversation, Message, Role
from guard.engine.cost import Work
from guard.engine.kv_cache import KvCache
from guard.engine.sequence import Float32, Forward, Job, Ticket
from guard.errors import InputTooLongError, InvalidInputError, ModelOutputError
from guard.generator import Generator
from guard.prompt import common_prefix
from guard.tokenizer import Segment

MIN_LABELS, MAX_LABELS = 2, 64
MAX_NAME_CHARACTERS = 64
MAX_DESCRIPTION_CHARACTERS = 512
MAX_INSTRUCTION_CHARACTERS = 2_000

_GENERAL_INSTRUCTION = "Decide which label fits the text best."
#: Texts that say nothing, those of the paper.
_CONTENT_FREE = ("N/A", "", "[MASK]")
#: Sets of labels whose preferences are kept.
_KEPT_PREFERENCES = 256
#: Stands for any stop token, after a label that begins another one.
_END = -1

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Label:
    """A label, and what belongs to it, for the model to read."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class TagTask:
    """Which of ``labels`` fits a ``text``, or the last message of a ``conversation`` of users and assistants?

    ``instruction`` says what the labels are about; ``today`` is for chat templates that print a date. Tasks with
    different ``cache_salt`` share nothing that was computed. Raises InvalidInputError naming the field.
    """

    labels: tuple[Label, ...]
    conversation: Conversation | None = None
    text: str | None = None
    instruction: str = ""
    calibrated: bool = True
    today: date = field(default_factory=date.today)
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if (self.conversation is None) == (self.text is None):
            raise InvalidInputError("text", "expected either messages or a text")
        if self.text is not None and not self.text.strip():
            raise InvalidInputError("text", "is empty or only white space")
        _check_characters("text", self.text or "")
        for index, message in enumerate(self.conversation.messages if self.conversation else ()):
            if message.role not in (Role.USER, Role.ASSISTANT):
                raise InvalidInputError(f"messages[{index}].role", "expected a user's or an assistant's message")
        _check_characters("instruction", self.instruction, MAX_INSTRUCTION_CHARACTERS)
        if not MIN_LABELS <= len(self.labels) <= MAX_LABELS:
            raise InvalidInputError("labels", f"{len(self.labels)} labels, expected {MIN_LABELS} to {MAX_LABELS}")
        seen: set[str] = set()
        for index, label in enumerate(self.labels):
            _check_line(f"labels[{index}].name", label.name, MAX_NAME_CHARACTERS)
            _check_line(f"labels[{index}].description", label.description, MAX_DESCRIPTION_CHARACTERS)
            if not label.name:
                raise InvalidInputError(f"labels[{index}].name", "is empty")
            if label.name in seen:
                raise InvalidInputError(f"labels[{index}].name", "is there twice")
            seen.add(label.name)


@dataclass(frozen=True)
class LabelScore:
    """How likely one label is: 0 to 1, and 1 for all labels together."""

    name: str
    probability: float


@dataclass(frozen=True)
class Tagging:
    """What became of a task. ``scores`` has every label, by falling probability; of equal ones, the earlier of the task
    comes first. Times in seconds. Of ``prompt_tokens``, ``cached_tokens`` cost no compute.
    """

    scores: tuple[LabelScore, ...]
    prompt_tokens: int
    cached_tokens: int
    queue_s: float
    model_s: float

    @property
    def label(self) -> str:
        """The most likely label."""
        return self.scores[0].name


class Tagger:
    """Chooses labels with a generator's model, on its engine."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._stop_ids = sorted(generator.bundle.manifest.tokens.stop)
        #: Salt, prompt without a text, and labels, to the log probabilities of the labels. The engine's thread only.
        self._preferences: OrderedDict[tuple[object, ...], Scores] = OrderedDict()

    def tag(self, task: TagTask) -> Tagging:
        """Choose and wait."""
        return self.submit(task).future.result()

    def submit(self, task: TagTask, deadline: float | None = None, caller: str = "") -> Ticket[Tagging]:
        """Queue one task; ``deadline`` is in time.monotonic() seconds. Callers take turns.

        Raises InputTooLongError, UnsupportedError, OverloadedError or DeadlineError at once; the future may end with
        DeadlineError, CancelledError, ModelOutputError or UnavailableError.
        """
        generator = self._generator
        labels = self._label_ids(task)
        prompt = self._prompt(task, _text(task))
        empty = [self._prompt(task, f"Text: {text}") for text in _CONTENT_FREE]
        room = max(map(len, labels)) - 1
        limit = generator.most_tokens()
        if len(prompt) + room > limit:
            raise InputTooLongError("messages" if task.text is None else "text", len(prompt), limit - room)
        capacity = max(map(len, [prompt, *empty])) + room

        def job(ticket: Ticket[Tagging]) -> Job[Tagging]:
            return self._tag(task, prompt, empty, labels, capacity, ticket)

        kv_bytes = capacity * generator.shape.kv_bytes_per_token
        work = Work(len(prompt))
        return generator.engine.submit(job, kv_bytes=kv_bytes, deadline=deadline, work=work, caller=caller)

    def _tag(
        self,
        task: TagTask,
        prompt: list[int],
        empty: list[list[int]],
        labels: list[tuple[int, ...]],
        capacity: int,
        ticket: Ticket[Tagging],
    ) -> Job[Tagging]:
        began = time.monotonic()
        cache = KvCache(self._generator.shape, capacity)
        try:
            cached = self._generator.prefixes.load(prompt, cache, task.cache_salt)
            score = yield from self._score(cache, prompt[:cached], prompt, labels)
            common = prompt[: common_prefix(empty[0], prompt)]
            self._generator.prefixes.keep(common, cache, task.cache_salt)
            if task.calibrated:
                score -= yield from self._preferred(cache, prompt, empty, labels, task.cache_salt)
        finally:
            cache.free()
        probabilities = np.exp(_normalized(score))
        order = np.argsort(-probabilities, kind="stable")
        return Tagging(
            scores=tuple(LabelScore(task.labels[index].name, float(probabilities[index])) for index in order),
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            queue_s=ticket.queue_s,
            model_s=time.monotonic() - began,
        )

    def _preferred(
        self,
        cache: KvCache,
        held: Sequence[int],
        empty: Sequence[Sequence[int]],
        labels: Sequence[tuple[int, ...]],
        salt: str,
    ) -> Job[Scores]:
        """What the model prefers without a text: the mean probability of each label over the prompts ``empty``."""
        key = (salt, tuple(empty[0]), tuple(labels))
        if key not in self._preferences:
            scores = []
            for prompt in empty:
                scores.append((yield from self._score(cache, held, prompt, labels)))
                held = prompt
            # Long labels have probabilities that are no float any more; their logarithms still are.
            self._preferences[key] = np.logaddexp.reduce(scores, axis=0) - np.log(len(scores))
            if len(self._preferences) > _KEPT_PREFERENCES:
                self._preferences.popitem(last=False)
        self._preferences.move_to_end(key)
        return self._preferences[key]

    def _score(
        self, cache: KvCache, held: Sequence[int], prompt: Sequence[int], labels: Sequence[tuple[int, ...]]
    ) -> Job[Scores]:
        """The log probability of each label after ``prompt``, all together 1. ``cache`` begins with ``held``.

        One step for the prompt, which is enough for labels of one token, and one for the rest of each other label:
        sorted, so that labels that begin alike compute their common tokens once.
        """
        cache.truncate(min(common_prefix(held, prompt), len(prompt) - 2))
        rest = prompt[cache.length :]
        logits = yield Forward(cache, rest, [len(rest) - 1])
        # What was written after the prompt, to the log probabilities of the tokens that are asked for there.
        asked: dict[tuple[int, ...], set[int]] = {}
        for label in labels:
            for index, token in enumerate(label):
                asked.setdefault(label[:index], set()).add(token)
        known: dict[tuple[int, ...], dict[int, float]] = {(): self._log_probabilities(logits[0], asked[()])}
        for label in sorted(labels):
            start = next((index for index in range(1, len(label)) if label[:index] not in known), len(label))
            if start == len(label):
                continue
            cache.truncate(len(prompt) + start - 1)
            logits = yield Forward(cache, label[start - 1 : -1], range(len(label) - start))
            for index, row in zip(range(start, len(label)), logits, strict=True):
                known[label[:index]] = self._log_probabilities(row, asked[label[:index]])
        scores = np.array([sum(known[label[:end]][token] for end, token in enumerate(label)) for label in labels])
        return _normalized(scores)

    def _log_probabilities(self, logits: Float32, tokens: set[int]) -> dict[int, float]:
        if not np.isfinite(logits).all():
            raise ModelOutputError("the model's logits are not finite")
        every = _normalized(logits.astype(np.float64))
        ends = float(np.logaddexp.reduce(every[self._stop_ids]))
        return {token: ends if token == _END else float(every[token]) for token in tokens}

    def _label_ids(self, task: TagTask) -> list[tuple[int, ...]]:
        """Each label's tokens; with _END where they begin another label, so that no label contains another."""
        labels = [tuple(self._generator.tokenizer.encode_text(f" {label.name}")) for label in task.labels]
        return [
            (*label, _END) if any(other != label and other[: len(label)] == label for other in labels) else label
            for label in labels
        ]

    def _prompt(self, task: TagTask, text: str) -> list[int]:
        """The system message is the same for all texts, so its KV is computed once."""
        lines = [f"- {label.name}: {label.description}".removesuffix(": ") for label in task.labels]
        instruction = task.instruction.strip() or _GENERAL_INSTRUCTION
        system = "\n".join([instruction, "Labels:", *lines, "Answer with one of the labels only."])
        messages = (Message(Role.SYSTEM, system), Message(Role.USER, f"{text}\nLabel:"))
        segments = self._generator.template.segments(Conversation(messages), task.today)
        return self._generator.tokenizer.encode([*segments, Segment("Label:", trusted=True)])


def _text(task: TagTask) -> str:
    if task.conversation is None:
        return f"Text: {task.text}"
    *earlier, last = task.conversation.messages
    lines = [f"{message.role.value}: {message.content}" for message in earlier]
    return "\n".join([*(["Conversation:", *lines, ""] if lines else []), f"Text: {last.content}"])


def _check_characters(name: str, text: str, limit: int | None = None) -> None:
    if limit is not None and len(text) > limit:
        raise InvalidInputError(name, f"{len(text)} characters, the limit is {limit}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(name, "has a lone surrogate, which is not valid Unicode") from None


def _check_line(name: str, text: str, limit: int) -> None:
    _check_characters(name, text, limit)
    if text != text.strip() or len(text.splitlines()) > 1:
        raise InvalidInputError(name, "expected one line without white space around it")


def _normalized(scores: Scores) -> Scores:
    """Log probabilities that are 1 together."""
    normalized: Scores = scores - np.logaddexp.reduce(scores)
    return normalized
