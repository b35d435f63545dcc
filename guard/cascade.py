"""Two guards, a small one before a large one: when the small one's answer may stand, and when the large one is asked.

The small one (the screen) answers only what it is sure of. Whatever its thresholds were not chosen for, and whatever
looks like somebody is trying something, goes to the large one. An error of the screen is no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from guard.classifier import ClassifyTask
from guard.policy import Policy
from guard.verdict import Judgement, Verdict


class Screening(Enum):
    """What came of the screen for one text."""

    NOT_ASKED = "not_asked"
    DECIDED = "decided"
    PASSED_ON = "passed_on"
    FAILED = "failed"


@dataclass(frozen=True)
class ScreenRules:
    """The screen's SAFE stands for scores below ``safe_below``, its UNSAFE for scores above ``unsafe_above``; 0 and 1
    mean never. Both were chosen for the large guard's verdicts at the policy threshold ``threshold``.
    Raises ValueError for numbers that are not in this order: 0, safe_below, threshold, unsafe_above, 1.
    """

    safe_below: float
    unsafe_above: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.safe_below <= self.threshold <= self.unsafe_above <= 1.0:  # also false for NaN
            raise ValueError("expected 0 <= safe_below <= threshold <= unsafe_above <= 1")

    def apply_to(self, task: ClassifyTask) -> bool:
        """Whether the screen is worth asking: its answer to ``task`` might stand."""
        policy = task.policy
        own_question = policy.excluded_categories or policy.custom_categories or task.mode != "one_pass"
        return not own_question and (self._safe_holds(policy) or self._unsafe_holds(policy))

    def stands(self, judgement: Judgement, policy: Policy) -> bool:
        """Whether the screen's ``judgement`` is the answer; of a task that ``apply_to`` accepts."""
        if judgement.forged_delimiters or judgement.context_left_out or judgement.matched_entry is not None:
            return False
        if judgement.verdict is Verdict.SAFE:
            return self._safe_holds(policy) and judgement.unsafe_score < self.safe_below
        return self._unsafe_holds(policy) and judgement.unsafe_score > self.unsafe_above

    def _safe_holds(self, policy: Policy) -> bool:
        """No threshold is lower: what the policy flags is a part of what was flagged when ``safe_below`` was chosen."""
        return self.safe_below > 0.0 and min(_thresholds(policy)) >= self.threshold

    def _unsafe_holds(self, policy: Policy) -> bool:
        """No threshold is higher: the policy flags at least what was flagged when ``unsafe_above`` was chosen."""
        return self.unsafe_above < 1.0 and max(_thresholds(policy)) <= self.threshold


def _thresholds(policy: Policy) -> tuple[float, ...]:
    return (policy.threshold, *policy.category_thresholds.values())
