"""Text generation with one instruct bundle: from a task to a prompt, from a prompt to text that streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from guard.bundle import Bundle
from guard.chat_template import ChatTemplate
from guard.conversation import Conversation, Message, Role, check_generation_turns
from guard.engine.cost import Work
from guard.engine.engine import Engine
from guard.engine.kv_cache import KvCache
from guard.engine.prefix_blocks import PrefixBlocks
from guard.engine.runner import Runner
from guard.engine.sampler import Sampler, SamplingParams
from guard.engine.sequence import Decode, Forward, Job, Ticket
from guard.engine.stats import PrefixStats
from guard.errors import BundleError, GuardError, InputTooLongError, InvalidInputError
from guard.generation import Constraint, Delta, GenerateTask, Generation, OutputFormat, ToolMode
from guard.lookup import PromptLookup
from guard.structured import FormatCompiler
from guard.tokenizer import Tokenizer
from guard.tools.grammar import forced_format
from guard.tools.schema import check_tools
from guard.writer import Vocabulary, Writer


class Generator:
    """Generates text with one instruct bundle."""

    def __init__(self, bundle: Bundle, runner: Runner, engine: Engine, tokenizer: Tokenizer | None = None) -> None:
        """``tokenizer``: the bundle's, where it was loaded already."""
        self.bundle = bundle
        self.engine = engine
        self.shape = runner.shape
        self.prefixes = PrefixBlocks(engine.settings.prefix_bytes)
        tokens = bundle.manifest.tokens
        self.tokenizer = tokenizer or Tokenizer(bundle.tokenizer_path, tokens.control)
        self._vocabulary = Vocabulary(self.tokenizer, frozenset(tokens.stop))
        self._formats = FormatCompiler(bundle.tokenizer_path, runner.shape.vocab_size, tokens.stop)
        source = bundle.chat_template()
        if source is None:
            raise BundleError("chat_template.jinja: an instruct bundle needs one")
        control_text = {token_id: text for text, token_id in tokens.control.items()}
        bos = "" if tokens.bos is None else control_text.get(tokens.bos, "")
        self.template = ChatTemplate(source, {"bos_token": bos, "eos_token": control_text.get(min(tokens.stop), "")})

    def generate(self, task: GenerateTask) -> Generation:
        """Generate and wait for the whole text."""
        return self.submit(task, lambda delta: None).future.result()

    def warm_up(self) -> None:
        """Write two tokens, and get ready for output formats if their extra is installed, so that no request pays for
        what happens only once. Raises BundleError when nothing is written.
        """
        self._formats.warm_up()
        try:
            self.generate(GenerateTask(Conversation((Message(Role.USER, "Hello."),)), max_tokens=2))
        except GuardError as error:
            raise BundleError(f"the model loads but does not write: {error}") from error

    def submit(
        self,
        task: GenerateTask,
        on_delta: Callable[[Delta], None],
        deadline: float | None = None,
        caller: str = "",
    ) -> Ticket[Generation]:
        """Queue one task. ``on_delta`` is called on the engine's thread with each piece of text and must not block.

        Raises InvalidInputError, InputTooLongError, UnsupportedError, OverloadedError or DeadlineError at once; the
        future may end with DeadlineError, CancelledError, ModelOutputError or UnavailableError. ``deadline`` is in
        time.monotonic() seconds. Callers take turns.
        """
        task.sampling.check_vocabulary(self.shape.vocab_size)
        check_tools(task.tools, task.tool_choice)
        constraints = self._constraints(task)
        prompt = self._prompt(task)
        self._check_length(task, len(prompt))

        def job(ticket: Ticket[Generation]) -> Job[Generation]:
            return self._generate(task, prompt, constraints, on_delta, ticket)

        kv_bytes = task.choices * (len(prompt) + task.max_tokens) * self.shape.kv_bytes_per_token
        work = Work(len(prompt), task.max_tokens, task.choices)
        return self.engine.submit(job, kv_bytes=kv_bytes, deadline=deadline, work=work, caller=caller)

    def prompt_tokens(self, task: GenerateTask) -> int:
        """How many tokens a task's prompt has; raises as ``submit`` for one that cannot be written."""
        return len(self._prompt(task))

    def most_tokens(self, sequences: int = 1) -> int:
        """How many tokens each of so many sequences may have: what the model's context and the KV memory hold."""
        affordable = self.engine.settings.kv_bytes // self.shape.kv_bytes_per_token // sequences
        return min(self.bundle.manifest.shape.max_positions, affordable)

    @property
    def prefix_stats(self) -> PrefixStats:
        """How often the beginning of a prompt was known already."""
        return self.prefixes.stats

    def close(self) -> None:
        """Stop the engine; jobs that have not ended fail."""
        self.engine.close()

    def _prompt(self, task: GenerateTask) -> list[int]:
        if task.conversation is None:
            return self.tokenizer.encode_plain(task.prompt or "")
        check_generation_turns(task.conversation)
        tools = () if task.tool_choice.mode is ToolMode.NONE else task.tools
        return self.tokenizer.encode(self.template.segments(task.conversation, task.today, tools))

    def _constraints(self, task: GenerateTask) -> list[Constraint | None]:
        """What each choice is held to: the format asked for, or that of the tool calls asked for."""
        wanted: OutputFormat | None = task.output_format
        forced = bool(task.tool_choice.name) or task.tool_choice.mode is ToolMode.REQUIRED
        if forced:
            wanted = forced_format(task.tools, task.tool_choice)
        try:
            return [None if wanted is None else self._formats.constraint(wanted) for _ in range(task.choices)]
        except InvalidInputError as error:
            if forced:  # the format is ours, its schemas are the tools'
                raise InvalidInputError("tools", f"cannot be forced: {error.problem}") from error
            raise

    def _check_length(self, task: GenerateTask, prompt_tokens: int) -> None:
        """Raises InputTooLongError or InvalidInputError when prompt and text do not fit the context or the memory."""
        field = "prompt" if task.conversation is None else "messages"
        if prompt_tokens == 0:
            raise InvalidInputError(field, "has no tokens")
        limit = self.most_tokens(task.choices)
        if prompt_tokens >= limit:
            raise InputTooLongError(field, prompt_tokens, limit - 1)
        if prompt_tokens + task.max_tokens > limit:
            raise InvalidInputError(
                "max_tokens", f"{prompt_tokens} prompt tokens + {task.max_tokens} are more than the limit of {limit}"
            )

    def _generate(
        self,
        task: GenerateTask,
        prompt: list[int],
        constraints: Sequence[Constraint | None],
        on_delta: Callable[[Delta], None],
        ticket: Ticket[Generation],
    ) -> Job[Generation]:
        began = time.monotonic()
        caches = [KvCache(self.shape, len(prompt) + task.max_tokens) for _ in range(task.choices)]
        try:
            cached = self.prefixes.load(prompt, caches[0], task.cache_salt)
            rest = prompt[cached:]
            logits = (yield Forward(caches[0], rest, [len(rest) - 1]))[0]
            self.prefixes.keep(prompt, caches[0], task.cache_salt)
            writers = self._writers(task, prompt, constraints, on_delta)
            for writer, cache in zip(writers, caches, strict=True):
                if cache is not caches[0]:
                    cache.copy_from(caches[0])
                writer.take(logits[None])
            first_token_s = time.monotonic() - ticket.submitted
            yield from _write(list(zip(writers, caches, strict=True)))
        finally:
            for cache in caches:
                cache.free()
        lookup = writers[0].lookup
        return Generation(
            choices=tuple(writer.finish() for writer in writers),
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            drafted_tokens=lookup.drafted if lookup else 0,
            accepted_tokens=lookup.accepted if lookup else 0,
            queue_s=ticket.queue_s,
            first_token_s=first_token_s,
            model_s=time.monotonic() - began,
        )

    def _writers(
        self,
        task: GenerateTask,
        prompt: Sequence[int],
        constraints: Sequence[Constraint | None],
        on_delta: Callable[[Delta], None],
    ) -> list[Writer]:
        # Several choices decode together, and a draft would only be looked at if one were left: see Decode.
        lookup = PromptLookup(prompt) if task.prompt_lookup and task.choices == 1 else None
        return [
            Writer(task, index, self._vocabulary, Sampler(_sampling(task, index), prompt), constraint, lookup, on_delta)
            for index, constraint in enumerate(constraints)
        ]


def _sampling(task: GenerateTask, index: int) -> SamplingParams:
    """Of choice number ``index``: each draws from a seed of its own."""
    seed = task.sampling.seed
    return task.sampling if seed is None else replace(task.sampling, seed=(seed + index) % (1 << 64))


def _write(choices: list[tuple[Writer, KvCache]]) -> Job[None]:
    """Decode all choices together until each is done."""
    while writing := [(writer, cache) for writer, cache in choices if not writer.done]:
        draft = writing[0][0].draft() if len(writing) == 1 else ()
        lengths = [cache.length for _, cache in writing]
        logits = yield Decode(tuple(cache for _, cache in writing), tuple(writer.token for writer, _ in writing), draft)
        verified = draft if len(logits) > len(writing) else ()
        for index, (writer, cache) in enumerate(writing):
            right = writer.take(logits[index : index + 1 + len(verified)], verified)
            cache.truncate(lengths[index] + 1 + right)
            if writer.done:
                cache.free()
