"""The guard: one forward pass gives the verdict, its score and a score per category."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from guard.bundle import Bundle
from guard.conversation import Conversation, Target
from guard.engine.engine import Engine, Job, Ticket
from guard.engine.kv_cache import KvCache, PrefixStore
from guard.engine.prefill import prefill
from guard.engine.runner import Float32, Runner
from guard.errors import InputTooLongError, ModelOutputError
from guard.policy import Policy
from guard.prompt import GuardPrompt, GuardPromptBuilder
from guard.tokenizer import Tokenizer
from guard.verdict import Judgement, category_probabilities, decide, next_token, unsafe_probability

Mode = Literal["one_pass", "exact"]


@dataclass(frozen=True)
class ClassifyTask:
    """One conversation to judge. ``exact`` decodes the category list greedily instead of reading it from one pass."""

    conversation: Conversation
    target: Target
    policy: Policy = field(default_factory=Policy)
    mode: Mode = "one_pass"


class Classifier:
    """Judges conversations with one guard bundle."""

    def __init__(self, bundle: Bundle, runner: Runner, engine: Engine) -> None:
        guard_format = bundle.manifest.guard
        if guard_format is None:
            raise ValueError("not a guard bundle")
        self.bundle = bundle
        self.engine = engine
        self._runner = runner
        self._answer = guard_format.answer
        self._prompts = GuardPromptBuilder(
            guard_format, Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control)
        )
        self._prefixes = PrefixStore(engine.settings.prefix_bytes)

    def classify(self, task: ClassifyTask) -> Judgement:
        """Judge and wait for the result; raises what ``submit`` and its future raise."""
        return self.submit(task).future.result()

    def submit(self, task: ClassifyTask, deadline: float | None = None) -> Ticket[Judgement]:
        """Queue one judgement; ``deadline`` is in time.monotonic() seconds.

        Raises InvalidInputError, InputTooLongError, UnsupportedError or OverloadedError at once; the future may end
        with DeadlineError, CancelledError, ModelOutputError or UnavailableError.
        """
        prompt = self._prompts.build(task.conversation, task.target, task.policy)
        tokens = len(prompt.token_ids) + self._answer_room()
        limit = self.bundle.manifest.shape.max_positions
        kv_bytes = tokens * self._runner.shape.kv_bytes_per_token
        if tokens > limit or kv_bytes > self.engine.settings.kv_bytes:
            affordable = self.engine.settings.kv_bytes // self._runner.shape.kv_bytes_per_token
            raise InputTooLongError("messages", tokens, min(limit, affordable))

        def job(ticket: Ticket[Judgement]) -> Job[Judgement]:
            return self._judge(task, prompt, tokens, ticket)

        return self.engine.submit(job, kv_bytes=kv_bytes, deadline=deadline)

    def close(self) -> None:
        """Stop the engine; jobs that have not ended fail."""
        self.engine.close()

    def _answer_room(self) -> int:
        """Tokens the longest answer needs: every category once, in either mode."""
        answer = self._answer
        each = len(answer.separator) + 1
        return len(answer.before_verdict) + 1 + len(answer.before_category) + each * len(answer.categories) + 1

    def _judge(self, task: ClassifyTask, prompt: GuardPrompt, tokens: int, ticket: Ticket[Judgement]) -> Job[Judgement]:
        began = time.monotonic()
        answer, rows = self._answer, self._runner.rows
        cache = KvCache(self._runner.shape, tokens)
        cached = yield from self._start(cache, prompt)
        # The continuation "unsafe, ..." is part of the same pass: its logits tell the categories, at a few tokens'
        # cost.
        question = [*prompt.token_ids[cache.length :], *answer.before_verdict]
        forced = [answer.unsafe, *answer.before_category]
        logits = yield from self._prefill(
            cache, [*question, *forced], [len(question) - 1, len(question) + len(forced) - 1]
        )
        unsafe = unsafe_probability(logits[0], rows, answer.safe, answer.unsafe)
        shares = category_probabilities(logits[1], rows, answer.categories)
        named: tuple[str, ...] = ()
        completion = 0
        if task.mode == "exact":
            said = next_token(logits[0], rows)
            if said not in (answer.safe, answer.unsafe):
                raise ModelOutputError("the model answered neither safe nor unsafe")
            if said == answer.unsafe or unsafe >= task.policy.threshold:
                named = yield from self._decode_list(cache, logits[1])
            completion = max(0, len(named) * (len(answer.separator) + 1) - len(answer.separator))
        verdict, score, categories = decide(unsafe, shares, task.policy, named)
        return Judgement(
            verdict=verdict,
            unsafe_score=score,
            categories=categories,
            mode=task.mode,
            forged_delimiters=prompt.forged_delimiters,
            prompt_tokens=len(prompt.token_ids) + len(answer.before_verdict) + len(forced),
            cached_tokens=cached,
            completion_tokens=completion,
            queue_s=ticket.queue_s,
            model_s=time.monotonic() - began,
        )

    def _start(self, cache: KvCache, prompt: GuardPrompt) -> Job[int]:
        """Fill ``cache`` with the prompt's fixed prefix, from the store when it is there; returns the tokens taken
        from it.
        """
        prefix_ids = prompt.token_ids[: prompt.prefix_tokens]
        if not prefix_ids:
            return 0
        kept = self._prefixes.find(prefix_ids)
        if kept is not None:
            cache.load_prefix(kept)
            return kept.length
        yield from self._prefill(cache, list(prefix_ids), [])
        self._prefixes.keep(prefix_ids, cache)
        return 0

    def _decode_list(self, cache: KvCache, logits: Float32) -> Job[tuple[str, ...]]:
        """Greedy decode of the category list from the logits at its start: category, (separator, category)*, end."""
        answer, rows = self._answer, self._runner.rows
        codes = {token: code for code, token in answer.categories.items()}
        named: list[str] = []
        token = next_token(logits, rows)
        while True:
            code = codes.get(token)
            if code is None or code in named:
                raise ModelOutputError("the model's category list cannot be read")
            named.append(code)
            yield
            logits = self._runner.forward(cache, [token], [0])[0]
            token = next_token(logits, rows)
            if token == answer.end:
                return tuple(named)
            for expected in answer.separator:
                if token != expected:
                    raise ModelOutputError("the model's category list cannot be read")
                yield
                logits = self._runner.forward(cache, [token], [0])[0]
                token = next_token(logits, rows)

    def _prefill(self, cache: KvCache, token_ids: list[int], wanted: list[int]) -> Job[Float32]:
        return prefill(self._runner, cache, token_ids, wanted, self.engine.settings.prefill_chunk)
