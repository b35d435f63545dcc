"""Text generation with one instruct bundle: chat template, sampling, stops, streaming."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from enum import Enum

from guard.bundle import Bundle
from guard.chat_template import ChatTemplate
from guard.conversation import Conversation, check_generation_turns
from guard.engine.engine import Engine, Job, Ticket
from guard.engine.kv_cache import KvCache
from guard.engine.prefill import prefill
from guard.engine.runner import Runner
from guard.engine.sampler import Sampler, SamplingParams
from guard.errors import BundleError, InputTooLongError, InvalidInputError
from guard.stops import StopMatcher
from guard.tokenizer import Tokenizer

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


class FinishReason(Enum):
    """Why a text ended: the model ended it, ``max_tokens`` was reached, or a stop string came up."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"


@dataclass(frozen=True)
class GenerateTask:
    """One text to generate. ``today`` is for chat templates that print a date. Raises InvalidInputError naming the
    field.
    """

    conversation: Conversation
    max_tokens: int = 256
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    today: date = field(default_factory=date.today)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidInputError("max_tokens", "expected at least 1")
        if len(self.stop) > MAX_STOPS:
            raise InvalidInputError("stop", f"{len(self.stop)} strings, the limit is {MAX_STOPS}")
        for index, text in enumerate(self.stop):
            if not 0 < len(text) <= MAX_STOP_CHARACTERS:
                raise InvalidInputError(f"stop[{index}]", f"expected 1 to {MAX_STOP_CHARACTERS} characters")


@dataclass(frozen=True)
class Delta:
    """Text that is ready to show, and how many tokens have been generated so far."""

    text: str
    completion_tokens: int


@dataclass(frozen=True)
class Generation:
    """A finished text. Times in seconds; ``first_token_s`` counts from submission."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_s: float
    first_token_s: float
    model_s: float


class Generator:
    """Generates text with one instruct bundle."""

    def __init__(self, bundle: Bundle, runner: Runner, engine: Engine) -> None:
        self.bundle = bundle
        self.engine = engine
        self._runner = runner
        tokens = bundle.manifest.tokens
        self._tokenizer = Tokenizer(bundle.tokenizer_path, tokens.control)
        self._stop_ids = frozenset(tokens.stop)
        self._token_of_row = {row: token for token, row in runner.rows.items()}
        source = bundle.chat_template()
        if source is None:
            raise BundleError("chat_template.jinja: an instruct bundle needs one")
        control_text = {token_id: text for text, token_id in tokens.control.items()}
        bos = "" if tokens.bos is None else control_text.get(tokens.bos, "")
        self._template = ChatTemplate(source, {"bos_token": bos, "eos_token": control_text.get(min(tokens.stop), "")})

    def generate(self, task: GenerateTask) -> Generation:
        """Generate and wait for the whole text."""
        return self.submit(task, lambda delta: None).future.result()

    def submit(
        self, task: GenerateTask, on_delta: Callable[[Delta], None], deadline: float | None = None
    ) -> Ticket[Generation]:
        """Queue one text. ``on_delta`` is called on the engine's thread with each piece of text and must not block.

        Raises InvalidInputError, InputTooLongError, UnsupportedError or OverloadedError at once; the future may end
        with DeadlineError, CancelledError, ModelOutputError or UnavailableError. ``deadline`` is in time.monotonic()
        seconds.
        """
        check_generation_turns(task.conversation)
        prompt = self._tokenizer.encode(self._template.segments(task.conversation, task.today))
        tokens = len(prompt) + task.max_tokens
        per_token = self._runner.shape.kv_bytes_per_token
        limit = min(self.bundle.manifest.shape.max_positions, self.engine.settings.kv_bytes // per_token)
        if len(prompt) >= limit:
            raise InputTooLongError("messages", len(prompt), limit - 1)
        if tokens > limit:
            raise InvalidInputError(
                "max_tokens", f"{len(prompt)} prompt tokens + {task.max_tokens} are more than the limit of {limit}"
            )

        def job(ticket: Ticket[Generation]) -> Job[Generation]:
            return self._generate(task, prompt, on_delta, ticket)

        return self.engine.submit(job, kv_bytes=tokens * per_token, deadline=deadline)

    def close(self) -> None:
        """Stop the engine; jobs that have not ended fail."""
        self.engine.close()

    def _generate(
        self, task: GenerateTask, prompt: list[int], on_delta: Callable[[Delta], None], ticket: Ticket[Generation]
    ) -> Job[Generation]:
        began = time.monotonic()
        cache = KvCache(self._runner.shape, len(prompt) + task.max_tokens)
        sampler, decoder, stops = Sampler(task.sampling), self._tokenizer.stream_decoder(), StopMatcher(task.stop)
        chunk = self.engine.settings.prefill_chunk
        logits = (yield from prefill(self._runner, cache, prompt, [len(prompt) - 1], chunk))[0]
        text: list[str] = []
        completion, first_token_s = 0, 0.0
        reason = FinishReason.LENGTH
        while completion < task.max_tokens:
            token = self._token_of_row[sampler.choose(logits)]
            completion += 1
            if completion == 1:
                first_token_s = time.monotonic() - ticket.submitted
            if token in self._stop_ids:
                reason = FinishReason.STOP
                break
            ready = stops.feed(decoder.step(token))
            if ready:
                text.append(ready)
                on_delta(Delta(ready, completion))
            if stops.matched:
                reason = FinishReason.STOP_SEQUENCE
                break
            if completion < task.max_tokens:
                yield
                logits = self._runner.forward(cache, [token], [0])[0]
        held = stops.flush()
        if held:
            text.append(held)
            on_delta(Delta(held, completion))
        return Generation(
            text="".join(text),
            finish_reason=reason,
            prompt_tokens=len(prompt),
            cached_tokens=0,
            completion_tokens=completion,
            queue_s=ticket.queue_s,
            first_token_s=first_token_s,
            model_s=time.monotonic() - began,
        )
