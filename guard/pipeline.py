"""Guarded generation: the prompt is judged while the model reads it, and its text while the model writes it.

Nothing leaves before the guard judged it, and whatever goes wrong with the guard ends the generation with an error. The
two models have an engine each; a thread of its own brings them together for each generation, so neither engine waits
for the other. What waits for its judgement is at most the text that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from queue import SimpleQueue
from threading import Thread

from guard.classifier import Classifier, ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.sequence import Ticket
from guard.errors import InvalidInputError
from guard.generation import Choice, Delta, FinishReason, GenerateTask, Generation
from guard.generator import Generator
from guard.holdback import HeldChoice
from guard.policy import Policy
from guard.streaming import MAX_EVERY_TOKENS, MIN_EVERY_TOKENS, StreamTask
from guard.verdict import Action, Judgement, action_for, worst_of


@dataclass(frozen=True)
class Moderation:
    """What is judged around a generation. ``every_tokens`` is StreamTask's. Raises InvalidInputError."""

    check_input: bool = True
    check_output: bool = True
    policy: Policy = field(default_factory=Policy)
    every_tokens: int = StreamTask.every_tokens

    def __post_init__(self) -> None:
        if not (self.check_input or self.check_output):
            raise InvalidInputError("moderation", "expected check_input, check_output or both")
        if not MIN_EVERY_TOKENS <= self.every_tokens <= MAX_EVERY_TOKENS:
            where = "moderation.check_every_tokens"
            raise InvalidInputError(where, f"expected {MIN_EVERY_TOKENS} to {MAX_EVERY_TOKENS}")


@dataclass(frozen=True)
class GuardedGeneration(Generation):
    """A generation and what the guard found. A choice that was blocked has FinishReason.CONTENT_FILTER and only the
    text that was released before; after a blocked input that is none.

    ``input`` and ``outputs`` (one a choice, None where nothing was written) are set for what was checked; ``judged``
    are the texts of the outputs as the guard read them. Tokens and times are the instruct model's; when the guard
    stopped it, they are those so far, and what it found in caches or drafted is not known (0).
    """

    input: Judgement | None = None
    outputs: tuple[Judgement | None, ...] = ()
    judged: tuple[str, ...] = field(default=(), repr=False)

    @property
    def output(self) -> Judgement | None:
        """The worst of the outputs."""
        judged = [output for output in self.outputs if output is not None]
        return worst_of(judged, lambda judgement: judgement) if judged else None

    def withheld(self) -> GuardedGeneration:
        """The same without any text of blocked choices: for those who have not been shown its beginning."""
        choices = tuple(
            replace(choice, text="", tool_calls=()) if choice.finish_reason is FinishReason.CONTENT_FILTER else choice
            for choice in self.choices
        )
        return replace(self, choices=choices)


class GuardedGenerator:
    """An instruct model and the guard beside it."""

    def __init__(self, generator: Generator, classifier: Classifier) -> None:
        self._generator = generator
        self._classifier = classifier

    def submit(
        self,
        task: GenerateTask,
        moderation: Moderation,
        on_release: Callable[[Delta], None],
        deadline: float | None = None,
        caller: str = "",
    ) -> GuardedTicket:
        """Queue one generation; both models begin at once. ``on_release`` is called with each piece that may be shown,
        on a thread of this generation. ``deadline`` is in time.monotonic() seconds.

        The guard's KV memory for all of it is taken now. Raises OverloadedError when that is not free, and what
        Classifier.submit, Classifier.stream and Generator.submit raise; the future may end with whatever theirs end
        with, and with ModelOutputError when the guard cannot judge what was written.
        """
        if moderation.check_output and task.logprobs is not None:
            raise InvalidInputError("logprobs", "show tokens that are not judged: not with moderation.check_output")
        turns = guard_turns(task)
        if moderation.check_input and not turns:
            raise InvalidInputError("moderation.check_input", "there is no user message to judge")
        with ExitStack() as undo:
            outputs: list[HeldChoice] = []
            check = None
            for index in range(task.choices if moderation.check_output else 0):
                stream = StreamTask(turns, Target.RESPONSE, moderation.policy, moderation.every_tokens)
                session = self._classifier.stream(stream, caller)
                undo.callback(session.close)
                outputs.append(HeldChoice(index, session, on_release, deadline))
            if moderation.check_input:
                question = ClassifyTask(
                    Conversation(turns), Target.PROMPT, moderation.policy, cache_salt=task.cache_salt
                )
                check = self._classifier.submit(question, deadline, caller=caller, at_once=True)
                undo.callback(check.cancel)
            inbox = _Inbox()
            generation = self._generator.submit(task, inbox.put, deadline, caller)
            undo.callback(generation.cancel)
            generation.future.add_done_callback(lambda _: inbox.end())
            ticket = GuardedTicket(
                _Parts(self._generator, task, moderation.policy, check, tuple(outputs), generation, inbox, on_release)
            )
            Thread(target=ticket.run, name="guarded-generation", daemon=True).start()
            undo.pop_all()
        return ticket


def guard_turns(task: GenerateTask) -> tuple[Message, ...]:
    """What the guard is shown of a prompt: turns of user and assistant that alternate, the last one the user's.

    A guard's prompt has no other roles, so system messages, tool calls and tools' results are left out, and so is what
    follows the last user message. Neighbours of one role become one turn.
    """
    if task.conversation is None:
        messages: tuple[Message, ...] = (Message(Role.USER, task.prompt or ""),)
    else:
        messages = task.conversation.messages
    spoken = [each for each in messages if each.role in (Role.USER, Role.ASSISTANT) and each.content.strip()]
    while spoken and spoken[-1].role is Role.ASSISTANT:
        spoken.pop()
    turns = groupby(spoken, key=lambda message: message.role)
    return tuple(Message(role, "\n\n".join(message.content for message in turn)) for role, turn in turns)


class _Inbox:
    """What the instruct model has written and nobody has looked at yet: at most ``max_tokens`` a choice."""

    def __init__(self) -> None:
        self._deltas: SimpleQueue[Delta | None] = SimpleQueue()
        self.written: dict[int, int] = {}  # tokens by choice
        self.first: float | None = None  # time.monotonic() seconds

    def put(self, delta: Delta) -> None:
        """Called on the instruct engine's thread."""
        if self.first is None:
            self.first = time.monotonic()
        self.written[delta.choice] = delta.completion_tokens
        self._deltas.put(delta)

    def end(self) -> None:
        """The generation has ended, one way or another."""
        self._deltas.put(None)

    def __iter__(self) -> Iterator[Delta]:
        """Wait for each delta, until the end."""
        return iter(self._deltas.get, None)


class GuardedTicket:
    """A guarded generation that runs. ``future`` gets its result or its error; ``cancel`` stops both models within one
    step and is harmless at the end; ``pause`` keeps the instruct model from writing on, until ``unpause``.
    ``submitted`` is in time.monotonic() seconds.
    """

    def __init__(self, parts: _Parts) -> None:
        self.future: Future[GuardedGeneration] = Future()
        self.future.set_running_or_notify_cancel()
        self.submitted = parts.generation.submitted
        self.cancel = parts.stop
        self.pause, self.unpause = parts.generation.pause, parts.generation.unpause
        self._parts = parts

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through both models so far, whether it comes to a result or not."""
        parts = self._parts
        checks = 0 if parts.check is None else parts.check.computed_tokens
        return parts.generation.computed_tokens + checks + sum(output.computed_tokens for output in parts.outputs)

    def run(self) -> None:
        """See it through, and free what it holds. Called once, on a thread of its own."""
        try:
            result = self._parts.result()
        except Exception as error:  # noqa: BLE001 - whatever went wrong belongs to whoever waits for the future
            self._parts.stop()
            self.future.set_exception(error)
        else:
            self._parts.stop()
            self.future.set_result(result)


@dataclass(frozen=True)
class _Parts:
    """What one guarded generation consists of. ``outputs`` is empty when the output is not checked."""

    generator: Generator
    task: GenerateTask
    policy: Policy
    check: Ticket[Judgement] | None
    outputs: tuple[HeldChoice, ...]
    generation: Ticket[Generation]
    inbox: _Inbox
    on_release: Callable[[Delta], None]

    def stop(self) -> None:
        """Stop what still runs and give the guard's memory back; may be called on any thread, more than once."""
        self.generation.cancel()
        if self.check is not None:
            self.check.cancel()
        for output in self.outputs:
            output.close()

    def result(self) -> GuardedGeneration:
        """Wait for the input's judgement, then release the text as it is written and judged."""
        found = None if self.check is None else self.check.future.result()
        if found is not None and action_for(found.verdict, self.policy) is Action.BLOCK:
            return self._cut_short(found)
        for delta in self.inbox:
            if not self.outputs:
                self.on_release(delta)
                continue
            self.outputs[delta.choice].add(delta)
            if all(output.blocked for output in self.outputs):
                return self._cut_short(found)
        generation = self.generation.future.result()
        choices = generation.choices
        if self.outputs:
            choices = tuple(output.finish(choice) for output, choice in zip(self.outputs, choices, strict=True))
        found_in = {"input": found, "outputs": tuple(output.judgement for output in self.outputs)}
        judged = tuple(output.text for output in self.outputs)
        return GuardedGeneration(**vars(generation) | {"choices": choices, "judged": judged} | found_in)

    def _cut_short(self, found: Judgement | None) -> GuardedGeneration:
        """The result when the guard blocked the input or every choice: the model is stopped and says no more."""
        self.generation.cancel()
        unsaid = [
            Choice("", FinishReason.CONTENT_FILTER, self.inbox.written.get(index, 0))
            for index in range(self.task.choices)
        ]
        blocked = [output for output in self.outputs if output.blocked]  # all of them, or none: then it was the input
        first, started = self.inbox.first, self.generation.started
        return GuardedGeneration(
            choices=tuple(output.shown(unsaid[index]) for index, output in enumerate(blocked)) or tuple(unsaid),
            prompt_tokens=self.generator.prompt_tokens(self.task),
            cached_tokens=0,
            drafted_tokens=0,
            accepted_tokens=0,
            queue_s=self.generation.queue_s,
            first_token_s=0.0 if first is None else first - self.generation.submitted,
            model_s=0.0 if started is None else time.monotonic() - started,
            input=found,
            outputs=tuple(output.judgement for output in blocked),
            judged=tuple(output.text for output in blocked),
        )
