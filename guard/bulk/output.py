"""What is written about each row, and who says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.bulk.source import Item, Problem
from guard.bundle.manifest import Manifest
from guard.errors import InvalidInputError
from guard.policies import NamedPolicy
from guard.prompt import judged_categories
from guard.reader import Mode
from guard.verdict import Judgement

#: Of the categories' scores; the verdict is decided before.
_DIGITS = 6


@dataclass(frozen=True)
class Identity:
    """What a verdict depends on besides its row. ``revision`` is the SHA-256 of the bundle's manifest.

    ``codes`` are the categories that have scores. Raises UnsupportedError or InvalidInputError for a policy that the
    model cannot judge by.
    """

    model: str
    revision: str
    policy: str
    policy_digest: str
    mode: Mode
    codes: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest, revision: str, policy: NamedPolicy, mode: Mode) -> Identity:
        """That of a bundle."""
        if manifest.guard is None:
            raise InvalidInputError("guard", "is no bundle of a guard model")
        judged_categories(manifest.guard, policy.policy)
        codes = tuple(
            code for code in manifest.guard.answer.categories if code not in policy.policy.excluded_categories
        )
        return cls(manifest.name, revision, policy.name, policy.policy.digest, mode, codes)


def judged(item: Item, judgement: Judgement, action: str, identity: Identity) -> dict[str, Any]:
    """The output for a row with a verdict: ``COLUMNS`` in order."""
    window = judgement.window
    scores = {category.code: category.score for category in judgement.categories}
    return _row(
        item,
        identity,
        verdict=judgement.verdict.value,
        action=action,
        unsafe_score=judgement.unsafe_score,
        categories=[category.code for category in judgement.categories if category.flagged],
        scores={code: round(scores[code], _DIGITS) for code in identity.codes if code in scores},
        decided_by=judgement.decided_by.value,
        view=judgement.view.value,
        windows=window.count,
        window_start=window.start,
        window_end=window.end,
        context_left_out=judgement.context_left_out,
        forged_delimiters=judgement.forged_delimiters,
        prompt_tokens=judgement.prompt_tokens,
    )


def unjudged(item: Item, problem: Problem, identity: Identity) -> dict[str, Any]:
    """The output for a row without a verdict: it has neither a score nor an action, and nothing takes it for safe."""
    return _row(item, identity, error=problem.reason, field=problem.field or None, problem=problem.problem)


#: What the output says of each row, in order; None is "not known".
COLUMNS = (
    *("row", "id", "target", "verdict", "action", "unsafe_score", "categories", "scores", "decided_by", "view"),
    *("windows", "window_start", "window_end", "context_left_out", "forged_delimiters", "prompt_tokens"),
    *("model", "revision", "policy", "error", "field", "problem"),
)


def _row(item: Item, identity: Identity, **values: Any) -> dict[str, Any]:
    known: Mapping[str, Any] = {
        "row": item.number,
        "id": item.id,
        "target": None if item.target is None else item.target.value,
        "categories": [],
        "scores": {},
        "model": identity.model,
        "revision": identity.revision,
        "policy": identity.policy,
        **values,
    }
    return {name: known.get(name) for name in COLUMNS}


def to_line(value: Mapping[str, Any]) -> bytes:
    """One line of JSON in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
