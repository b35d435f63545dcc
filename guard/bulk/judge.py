"""Asking a guard in this process about rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from guard.bulk.output import Identity, judged, to_line, unjudged
from guard.bulk.source import Item, Problem
from guard.bundle import open_bundle
from guard.classifier import Classifier, ClassifyTask, Mode
from guard.engine.memory import share_one_heap
from guard.engine.sequence import Ticket
from guard.engine.settings import EngineSettings
from guard.errors import CancelledError, GuardError, InvalidInputError, OverloadedError, UnavailableError
from guard.policies import NamedPolicy
from guard.runtime import load_guard
from guard.verdict import Judgement, action_for

#: Rows in the engine at a time: one computes while the next are made into prompts. Only one computes, so that no
#: score depends on its neighbours or on time, and a run that was killed gives what one run gives, to the last digit.
_IN_FLIGHT = 4
_ONE_ACTIVE = 1


@dataclass(frozen=True)
class LocalGuard:
    """A bundle and how to ask it: what a process needs to become a judge."""

    bundle: Path
    policy: NamedPolicy
    mode: Mode = "one_pass"
    threads: int = 1

    @cached_property
    def identity(self) -> Identity:
        """Of the verdicts. Opens the bundle, and raises BundleError for one that cannot be trusted."""
        bundle = open_bundle(self.bundle)
        return Identity.of(bundle.manifest, bundle.digest, self.policy, self.mode)

    def load(self) -> RowJudge:
        """For a process that does nothing else; raises what ``load_guard`` raises."""
        share_one_heap()
        settings = EngineSettings(threads=self.threads, max_active=_ONE_ACTIVE, max_queued_tokens=1 << 24)
        return RowJudge(load_guard(self.bundle, settings), self.policy, self.mode)


class RowJudge:
    """Judges rows with a loaded guard."""

    def __init__(self, classifier: Classifier, policy: NamedPolicy, mode: Mode) -> None:
        bundle = classifier.bundle
        self.identity = Identity.of(bundle.manifest, bundle.digest, policy, mode)
        self._classifier = classifier
        self._policy = policy.policy

    def lines(self, items: Sequence[Item]) -> tuple[bytes, ...]:
        """A line of output for each item, in order. Raises UnavailableError when the engine has stopped."""
        return tuple(map(to_line, self.values(items)))

    def values(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        """What the lines say."""
        waiting: deque[tuple[Item, Ticket[Judgement] | Problem]] = deque()
        for item in items:
            waiting.append((item, self._submit(item)))
            if len(waiting) == _IN_FLIGHT:
                yield self._value(*waiting.popleft())
        while waiting:
            yield self._value(*waiting.popleft())

    def close(self) -> None:
        """Stop the engine."""
        self._classifier.close()

    def _submit(self, item: Item) -> Ticket[Judgement] | Problem:
        if item.conversation is None or item.target is None:
            return item.problem or Problem(GuardError.reason, "", "the row was not read")
        task = ClassifyTask(item.conversation, item.target, self._policy, self.identity.mode)
        try:
            return self._classifier.submit(task)
        except GuardError as error:
            return _problem(error)

    def _value(self, item: Item, answer: Ticket[Judgement] | Problem) -> dict[str, Any]:
        if isinstance(answer, Problem):
            return unjudged(item, answer, self.identity)
        try:
            judgement = answer.future.result()
        except GuardError as error:
            return unjudged(item, _problem(error), self.identity)
        except Exception:  # noqa: BLE001 - onnxruntime raises bare exceptions, whose text may hold anything
            return unjudged(item, Problem(GuardError.reason, "", "the model failed"), self.identity)
        return judged(item, judgement, action_for(judgement.verdict, self._policy).value, self.identity)


def _problem(error: GuardError) -> Problem:
    if isinstance(error, UnavailableError | CancelledError | OverloadedError):
        raise error  # the engine's end, not the row's
    if isinstance(error, InvalidInputError):
        return Problem(error.reason, error.field, error.problem)
    return Problem(error.reason, "", str(error))
