"""The guard: one forward pass a window gives the verdict, its score and a score per category."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from guard.bundle import Bundle
from guard.cache import CacheLimits, VerdictCache
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.cost import Work
from guard.engine.engine import Engine
from guard.engine.runner import Runner
from guard.engine.sequence import Job, Ticket
from guard.engine.stats import PrefixStats
from guard.errors import BundleError, GuardError, InputTooLongError
from guard.normalize import views
from guard.phrases import Match
from guard.policy import Policy
from guard.prompt import GuardPromptBuilder, judged_categories
from guard.reader import HeldPrompt, Mode, Reader, Reading
from guard.scan import Pass, ScanLimits, Scanner
from guard.streaming import StreamSession, StreamTask
from guard.tokenizer import Tokenizer
from guard.verdict import DecidedBy, Judgement, Verdict, Window, worst_of

__all__ = ["Classifier", "ClassifyTask", "Mode"]


@dataclass(frozen=True)
class ClassifyTask:
    """One conversation to judge. ``exact`` decodes the category list greedily instead of reading it from one pass.

    Tasks with different ``cache_salt`` share no cached verdict.
    """

    conversation: Conversation
    target: Target
    policy: Policy = field(default_factory=Policy)
    mode: Mode = "one_pass"
    cache_salt: str = ""


class Classifier:
    """Judges conversations with one guard bundle."""

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        engine: Engine,
        limits: ScanLimits | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """``tokenizer``: the bundle's, where it was loaded already."""
        guard_format = bundle.manifest.guard
        if guard_format is None:
            raise ValueError("not a guard bundle")
        self.bundle = bundle
        self._format = guard_format
        self.engine = engine
        #: Keeps nothing, until it is replaced by one with other limits.
        self.cache = VerdictCache(CacheLimits(), bundle.digest)
        settings = engine.settings
        self._reader = Reader(runner, guard_format.answer, settings.prefix_bytes)
        tokenizer = tokenizer or Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control)
        self._scanner = Scanner(GuardPromptBuilder(guard_format, tokenizer), tokenizer, limits or ScanLimits())

    def classify(self, task: ClassifyTask) -> Judgement:
        """Judge and wait for the result; raises what ``submit`` and its future raise."""
        return self.submit(task).future.result()

    def check_policy(self, policy: Policy) -> None:
        """Raises InvalidInputError or UnsupportedError for a policy with categories that this model cannot judge."""
        judged_categories(self._format, policy)

    def warm_up(self, policy: Policy | None = None) -> None:
        """Judge a harmless text as prompt and as response: what both kinds of prompts begin with under ``policy`` is
        kept from now on, and no request pays for what happens only once. Raises BundleError when there is no verdict.
        """
        messages = (Message(Role.USER, "Hello."), Message(Role.ASSISTANT, "Hello."))
        for count, target in enumerate((Target.PROMPT, Target.RESPONSE), start=1):
            task = ClassifyTask(Conversation(messages[:count]), target, policy or Policy())
            try:
                self.classify(task)
            except GuardError as error:
                raise BundleError(f"the model loads but does not judge: {error}") from error

    def submit(
        self, task: ClassifyTask, deadline: float | None = None, *, caller: str = "", at_once: bool = False
    ) -> Ticket[Judgement]:
        """Queue one judgement, unless the cache or the policy's lists decide; ``deadline`` is in time.monotonic()
        seconds. Callers take turns. ``at_once`` takes the KV memory now, or raises OverloadedError: for callers who
        hold some already and must not wait for more.

        Raises InvalidInputError, InputTooLongError, UnsupportedError, OverloadedError or DeadlineError at once; the
        future may end with DeadlineError, CancelledError, ModelOutputError or UnavailableError.
        """
        key = self.cache.key(task.conversation, task.target, task.policy, task.mode, task.cache_salt)
        known = self.cache.get(key)
        if known is not None:
            return Ticket.finished(known)
        passes = self._scanner.plan(task.conversation, task.target, task.policy)
        tokens = max(len(each.prompt.token_ids) for each in passes) + self._reader.answer_room
        limit = self.bundle.manifest.shape.max_positions
        kv_bytes = tokens * self._reader.shape.kv_bytes_per_token
        if tokens > limit or kv_bytes > self.engine.settings.kv_bytes:
            affordable = self.engine.settings.kv_bytes // self._reader.shape.kv_bytes_per_token
            raise InputTooLongError("messages", tokens, min(limit, affordable))

        listed = _judge_by_lists(task, passes)
        if listed is not None:
            return Ticket.finished(listed)

        def job(ticket: Ticket[Judgement]) -> Job[Judgement]:
            judgement = yield from self._scan(task, passes, tokens, ticket)
            self.cache.put(key, judgement)
            return judgement

        work = Work(sum(len(each.prompt.token_ids) for each in passes))
        submit = partial(self.engine.submit, job, deadline=deadline, work=work, caller=caller)
        return self._submit_holding(submit, kv_bytes) if at_once else submit(kv_bytes=kv_bytes)

    def stream(self, task: StreamTask, caller: str = "") -> StreamSession:
        """Begin to judge a message that is still being written; raises what StreamSession raises."""
        return StreamSession(task, self._scanner, self._reader, self.engine, caller)

    @property
    def prefix_stats(self) -> PrefixStats:
        """How often the fixed start of a prompt was known already."""
        return self._reader.prefix_stats

    def close(self) -> None:
        """Stop the engine; jobs that have not ended fail."""
        self.engine.close()

    def _submit_holding(self, submit: Callable[[], Ticket[Judgement]], kv_bytes: int) -> Ticket[Judgement]:
        self.engine.hold(kv_bytes)
        try:
            ticket = submit()
        except GuardError:
            self.engine.release(kv_bytes)
            raise
        ticket.future.add_done_callback(lambda _: self.engine.release(kv_bytes))
        return ticket

    def _scan(
        self, task: ClassifyTask, passes: tuple[Pass, ...], tokens: int, ticket: Ticket[Judgement]
    ) -> Job[Judgement]:
        """Make the passes until one is unsafe; the worst of them, with the tokens of all."""
        began = time.monotonic()
        held = HeldPrompt(self._reader.shape, tokens, filled=True)
        readings: list[tuple[Reading, Pass]] = []
        for each in passes:
            reading = yield from self._reader.read(each.prompt, task.policy, task.mode, held)
            readings.append((reading, each))
            if reading.verdict is Verdict.UNSAFE:
                break
        worst, where = worst_of(readings, lambda pair: pair[0])
        return Judgement(
            verdict=worst.verdict,
            unsafe_score=worst.unsafe_score,
            categories=worst.categories,
            mode=task.mode,
            forged_delimiters=any(each.prompt.forged_delimiters for each in passes),
            view=where.view,
            window=where.window,
            context_left_out=where.context_left_out,
            passes=len(readings),
            prompt_tokens=sum(reading.prompt_tokens for reading, _ in readings),
            cached_tokens=sum(reading.cached_tokens for reading, _ in readings),
            completion_tokens=sum(reading.completion_tokens for reading, _ in readings),
            queue_s=ticket.queue_s,
            model_s=time.monotonic() - began,
        )


def _judge_by_lists(task: ClassifyTask, passes: tuple[Pass, ...]) -> Judgement | None:
    """What the policy's lists say about the judged text: deny in any of its views, allow only of all of it."""
    text, policy = task.conversation.messages[-1].content.strip(), task.policy
    denied = policy.deny.found_in(views(text)) if policy.deny else None
    if denied is not None:
        return _listed(task, passes, denied, Verdict.UNSAFE, DecidedBy.DENY_LIST)
    allowed = policy.allow.equal_to(text)
    return None if allowed is None else _listed(task, passes, allowed, Verdict.SAFE, DecidedBy.ALLOW_LIST)


def _listed(
    task: ClassifyTask, passes: tuple[Pass, ...], match: Match, verdict: Verdict, decided_by: DecidedBy
) -> Judgement:
    length = max(each.window.end for each in passes if each.view is match.view)
    return Judgement(
        verdict=verdict,
        unsafe_score=1.0 if verdict is Verdict.UNSAFE else 0.0,
        categories=(),
        mode=task.mode,
        forged_delimiters=any(each.prompt.forged_delimiters for each in passes),
        view=match.view,
        window=Window(0, length, 0, 1),
        context_left_out=passes[0].context_left_out,
        passes=0,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        queue_s=0.0,
        model_s=0.0,
        decided_by=decided_by,
        matched_entry=match.entry,
    )
