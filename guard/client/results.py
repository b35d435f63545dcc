"""What the client's calls return. Frozen; times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from guard.cascade import Screening
from guard.conversation import Target
from guard.normalize import ViewKind
from guard.policy import CustomCategory, PolicyAction
from guard.verdict import Action, CategoryScore, DecidedBy, Verdict, Window

ModelTask = Literal["guard", "instruct"]
ModelState = Literal["loading", "ready", "failed", "unloading"]


@dataclass(frozen=True)
class Usage:
    """Tokens read (of them cached ones, which cost no compute) and written.

    Of ``drafted_tokens`` that prompt lookup proposed, ``accepted_tokens`` saved a step each.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """The server's own clock: waiting, computing, until the first token (generation only), and all of it."""

    queue_s: float
    model_s: float
    first_token_s: float | None
    total_s: float


@dataclass(frozen=True)
class AppliedPolicy:
    """The policy that the server applied. ``digest`` is of all of it, the request's changes included."""

    name: str
    digest: str


@dataclass(frozen=True)
class Classification:
    """A verdict. ``unsafe_score`` = P(unsafe), 0 to 1, whatever the thresholds. ``categories`` by falling score.

    Long texts are judged in windows and disguised ones in several views: verdict and scores are those of the worst of
    ``passes``, which is ``window`` of ``view``. ``view`` and ``decided_by`` are None when newer than this client.

    ``action`` is what the policy asks for: in shadow mode an unsafe text has REPORT. ``matched_entry`` is the name or
    index of the entry when a list decided. ``screening`` says whether the server's screen judged; None when newer.
    """

    request_id: str
    model: str
    target: Target
    verdict: Verdict
    unsafe_score: float
    categories: tuple[CategoryScore, ...]
    action: Action
    decided_by: DecidedBy | None
    matched_entry: str | None
    policy: AppliedPolicy
    mode: Literal["one_pass", "exact"]
    forged_delimiters: bool
    view: ViewKind | None
    window: Window
    passes: int
    context_messages_left_out: int
    usage: Usage
    timings: Timings
    screening: Screening | None = Screening.NOT_ASKED

    @property
    def top_category(self) -> CategoryScore | None:
        """The category with the highest score; None when the server sent none."""
        return max(self.categories, key=lambda category: category.score, default=None)


@dataclass(frozen=True)
class StreamOptions:
    """How often a text that is being written is judged; what is None is left to the server. Limits: moderation.proto.

    Every so many tokens, at the ends of sentences instead, and also when text has waited so many seconds.
    """

    check_every_tokens: int | None = None
    at_sentence_ends: bool = False
    check_at_latest_after_s: float | None = None


@dataclass(frozen=True)
class StreamProgress:
    """One check of a text that is being written. ``text`` is what it released, beyond what was released before.

    ``categories`` are the flagged ones; ``window`` is what the model read, in characters of the whole text; ``checks``
    counts them, this one included. After ``Action.BLOCK`` nothing more is released.
    """

    text: str
    verdict: Verdict
    action: Action
    unsafe_score: float
    categories: tuple[CategoryScore, ...]
    released_bytes: int
    judged_bytes: int
    view: ViewKind | None
    window: Window
    checks: int


@dataclass(frozen=True)
class VerdictCacheInfo:
    """What a guard model's cache of verdicts was asked since the model was loaded, and holds."""

    hits: int
    misses: int
    entries: int
    bytes: int


@dataclass(frozen=True)
class ModelInfo:
    """A model of the server, as ModelService shows it (model.proto). ``categories``: (code, name) pairs.

    ``verdict_cache`` is None for other models than guards, and where the server keeps no verdicts.
    """

    name: str
    task: ModelTask
    state: ModelState
    architecture: str
    quantization: str
    max_context_tokens: int
    categories: tuple[tuple[str, str], ...]
    manifest_sha256: str
    kv_bytes_per_token: int
    verdict_cache: VerdictCacheInfo | None = None


@dataclass(frozen=True)
class PolicyInfo:
    """A policy of the server, as ModerationService.ListPolicies shows it."""

    name: str
    digest: str
    threshold: float
    category_thresholds: Mapping[str, float]
    excluded_categories: tuple[str, ...]
    custom_categories: tuple[CustomCategory, ...]
    action: PolicyAction
    deny_entries: int
    allow_entries: int
    is_default: bool
