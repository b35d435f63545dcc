"""Logits -> verdict. Whatever cannot be read raises ModelOutputError; nothing unreadable becomes SAFE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from guard.errors import ModelOutputError
from guard.normalize import ViewKind
from guard.policy import Policy, PolicyAction
from guard.taxonomy import HAZARDS

T = TypeVar("T")
FloatArray = npt.NDArray[np.floating]
#: Token id to row of a (possibly pruned) LM head.
HeadRows = Mapping[int, int]


class Verdict(Enum):
    """The answer. There is no third value: a failure is an exception."""

    SAFE = "safe"
    UNSAFE = "unsafe"


class Action(Enum):
    """What to do with the judged text: a verdict under a policy's PolicyAction."""

    ALLOW = "allow"
    BLOCK = "block"
    REPORT = "report"


class DecidedBy(Enum):
    """How a verdict was reached."""

    MODEL = "model"
    DENY_LIST = "deny_list"
    ALLOW_LIST = "allow_list"
    CACHE = "cache"


@dataclass(frozen=True)
class Window:
    """Characters ``start`` to ``end`` of a view's text: window ``index`` of ``count``."""

    start: int
    end: int
    index: int
    count: int


@dataclass(frozen=True)
class CategoryScore:
    """``score`` = P(unsafe) * P(this category is the one named first | unsafe), in 0..1."""

    code: str
    name: str
    score: float
    flagged: bool


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reasons. ``mode`` says how the categories were read. Times in seconds.

    Long texts are read in windows and disguised ones in several views: this is the worst of those passes, ``view`` and
    ``window`` say which, and ``passes`` how many were made (fewer than planned when an unsafe one ended the scan).
    Tokens are those of all passes. ``matched_entry`` is set when a list decided, without any pass.
    """

    verdict: Verdict
    unsafe_score: float
    categories: tuple[CategoryScore, ...]
    mode: Literal["one_pass", "exact"]
    forged_delimiters: bool
    view: ViewKind
    window: Window
    context_left_out: int
    passes: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_s: float
    model_s: float
    decided_by: DecidedBy = DecidedBy.MODEL
    matched_entry: str | None = None


class Scored(Protocol):
    """Anything with a verdict and a score."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def unsafe_score(self) -> float: ...


def action_for(verdict: Verdict, policy: Policy) -> Action:
    """Shadow mode never blocks."""
    if verdict is Verdict.SAFE:
        return Action.ALLOW
    return Action.REPORT if policy.action is PolicyAction.SHADOW else Action.BLOCK


def worst_of(items: Sequence[T], scored: Callable[[T], Scored]) -> T:
    """The first item with the worst verdict, and the highest score among those."""
    return max(items, key=lambda item: (scored(item).verdict is Verdict.UNSAFE, scored(item).unsafe_score))


def unsafe_probability(logits: FloatArray, rows: HeadRows, safe: int, unsafe: int) -> float:
    """P(unsafe) = softmax over the two verdict tokens of ``logits`` [rows]."""
    pair = _finite(logits)[[rows[safe], rows[unsafe]]]
    return float(softmax(pair)[1])


def category_probabilities(logits: FloatArray, rows: HeadRows, tokens: Mapping[str, int]) -> dict[str, float]:
    """P(category is named first | unsafe): softmax over the category tokens of ``logits`` [rows]."""
    values = _finite(logits)[[rows[token] for token in tokens.values()]]
    return dict(zip(tokens, map(float, softmax(values)), strict=True))


def next_token(logits: FloatArray, rows: HeadRows) -> int:
    """The most likely token id of ``logits`` [rows]."""
    row = int(np.argmax(_finite(logits)))
    return next(token for token, index in rows.items() if index == row)


def softmax(values: FloatArray) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    shifted = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def _finite(logits: FloatArray) -> FloatArray:
    if not np.isfinite(logits).all():
        raise ModelOutputError("the model's logits are not finite")
    return logits


def decide(
    unsafe: float, given_unsafe: Mapping[str, float], policy: Policy, named: tuple[str, ...] = ()
) -> tuple[Verdict, float, tuple[CategoryScore, ...]]:
    """Apply a policy to P(unsafe) and P(category | unsafe) over all of the model's categories.

    - Excluded categories take their share of P(unsafe) with them, also when the model did not see the exclusion.
    - The leading category's threshold is compared with the remaining P(unsafe); any other category is flagged when
      its own
      joint score reaches its threshold, or when the exact mode ``named`` it. UNSAFE means that something is flagged.

    Returns verdict, the remaining P(unsafe), and the categories by falling score.
    """
    kept = {code: share for code, share in given_unsafe.items() if code not in policy.excluded_categories}
    remaining = unsafe * sum(kept.values()) if len(kept) < len(given_unsafe) else unsafe
    leading = max(kept, key=lambda code: kept[code])
    names = {custom.code: custom.name for custom in policy.custom_categories}
    is_unsafe = remaining >= policy.threshold_for(leading)
    categories = []
    for code, share in sorted(kept.items(), key=lambda item: -item[1]):
        score = unsafe * share
        flagged = score >= policy.threshold_for(code) or (is_unsafe and (code == leading or code in named))
        name = names.get(code) or (HAZARDS[code].name if code in HAZARDS else code)
        categories.append(CategoryScore(code, name, score, flagged))
    verdict = Verdict.UNSAFE if any(category.flagged for category in categories) else Verdict.SAFE
    return verdict, remaining, tuple(categories)
