"""The screen: a small guard that goes before the default one and answers what it is sure of (``guard.cascade``)."""

from __future__ import annotations

from functools import partial

from guard.cascade import Screening, ScreenRules
from guard.classifier import ClassifyTask
from guard.verdict import Judgement
from server import tickets
from server.call import Call
from server.registry import Entry, Registry
from server.tickets import Submitter


class Screener:
    """Asks the registry's screen under ``rules``; without any, nothing is screened."""

    def __init__(self, registry: Registry, submitter: Submitter, rules: ScreenRules | None) -> None:
        self._registry = registry
        self._submitter = submitter
        self._rules = rules

    async def ask(self, task: ClassifyTask, size: int, this: Call) -> tuple[Screening, tuple[Entry, Judgement] | None]:
        """What came of the screen for a request of ``size`` bytes, and its answer if that stands. Never raises for what
        the screen does: without its answer the default guard is asked.
        """
        if self._rules is None:
            return Screening.NOT_ASKED, None
        if not self._rules.apply_to(task):
            this.observer.screened(Screening.NOT_ASKED, "", None)
            return Screening.NOT_ASKED, None
        try:
            entry, judgement = await self._judged(task, size, this)
        except Exception:  # noqa: BLE001 - whatever is wrong with the screen, the default guard answers
            this.observer.screened(Screening.FAILED, "", None)
            return Screening.FAILED, None
        stands = self._rules.stands(judgement, task.policy)
        screening = Screening.DECIDED if stands else Screening.PASSED_ON
        this.observer.screened(screening, entry.name, judgement)
        return screening, (entry, judgement) if stands else None

    async def _judged(self, task: ClassifyTask, size: int, this: Call) -> tuple[Entry, Judgement]:
        entry, classifier = self._registry.screener()
        with entry.users:
            submission = partial(classifier.submit, task, this.deadline, caller=this.caller or "")
            ticket = await self._submitter.submit(size, submission)
            with this.charging(ticket):
                return entry, await tickets.result(ticket)
