"""Text generation with one instruct bundle: chat template, sampling, stops, streaming."""

from __future__ import annotations

import time
from collections.abc import Callable

from guard.bundle import Bundle
from guard.chat_template import ChatTemplate
from guard.conversation import check_generation_turns
from guard.engine.engine import Engine, Job, Ticket
from guard.engine.kv_cache import KvCache
from guard.engine.prefill import prefill
from guard.engine.runner import Runner
from guard.engine.sampler import Sampler
from guard.errors import BundleError, InputTooLongError, InvalidInputError, UnsupportedError
from guard.generation import Choice, Delta, FinishReason, GenerateTask, Generation
from guard.stops import StopMatcher
from guard.tokenizer import Tokenizer


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
        if task.conversation is None:
            raise UnsupportedError("prompt")
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
            choices=(Choice("".join(text), reason, completion),),
            prompt_tokens=len(prompt),
            cached_tokens=0,
            drafted_tokens=0,
            accepted_tokens=0,
            queue_s=ticket.queue_s,
            first_token_s=first_token_s,
            model_s=time.monotonic() - began,
        )
