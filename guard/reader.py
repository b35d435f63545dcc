"""One pass of a guard model over one prompt: prefill what the KV cache does not hold yet, read the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guard.bundle.guard_format import AnswerTokens
from guard.bundle.manifest import ModelShape
from guard.engine.kv_cache import KvCache, PrefixStore
from guard.engine.runner import Float32, Runner
from guard.engine.sequence import Forward, Job
from guard.engine.stats import PrefixStats
from guard.errors import ModelOutputError
from guard.policy import Policy
from guard.prompt import GuardPrompt, common_prefix
from guard.verdict import (
    CategoryScore,
    Verdict,
    category_probabilities,
    decide,
    next_token,
    unsafe_probability,
)

Mode = Literal["one_pass", "exact"]


@dataclass(frozen=True)
class Reading:
    """What one pass said."""

    verdict: Verdict
    unsafe_score: float
    categories: tuple[CategoryScore, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class HeldPrompt:
    """A KV cache and the token ids in it: the next prompt that begins with the same ids computes only the rest.

    ``filled`` as for KvCache.
    """

    def __init__(self, shape: ModelShape, capacity: int, *, filled: bool = False) -> None:
        self.cache = KvCache(shape, capacity, filled=filled)
        self._token_ids: tuple[int, ...] = ()

    def keep_common(self, token_ids: tuple[int, ...]) -> int:
        """Roll the cache back to what it shares with ``token_ids``, less one: the last token's logits are wanted.

        Returns the number of tokens kept.
        """
        held = common_prefix(self._token_ids[: self.cache.length], token_ids)
        self.cache.truncate(min(held, len(token_ids) - 1))
        self._token_ids = token_ids
        return self.cache.length


class Reader:
    """Reads one guard model's answers. Used from the engine's thread only."""

    def __init__(self, runner: Runner, answer: AnswerTokens, prefix_bytes: int) -> None:
        self.shape = runner.shape
        self._rows = runner.rows
        self._answer = answer
        self._prefixes = PrefixStore(prefix_bytes)

    @property
    def prefix_stats(self) -> PrefixStats:
        """How often the fixed start of a prompt was known already."""
        return self._prefixes.stats

    @property
    def answer_room(self) -> int:
        """Tokens the longest answer needs: every category once, in either mode."""
        answer = self._answer
        each = len(answer.separator) + 1
        return len(answer.before_verdict) + 1 + len(answer.before_category) + each * len(answer.categories) + 1

    def read(self, prompt: GuardPrompt, policy: Policy, mode: Mode, held: HeldPrompt) -> Job[Reading]:
        """Judge one prompt; ``held`` may hold an earlier one and holds this one afterwards."""
        answer, rows, cache = self._answer, self._rows, held.cache
        cached = yield from self._start(held, prompt)
        # The continuation "unsafe, ..." is part of the same pass: its logits tell the categories for a few tokens more.
        question = [*prompt.token_ids[cache.length :], *answer.before_verdict]
        forced = [answer.unsafe, *answer.before_category]
        logits = yield Forward(cache, [*question, *forced], [len(question) - 1, len(question) + len(forced) - 1])
        unsafe = unsafe_probability(logits[0], rows, answer.safe, answer.unsafe)
        shares = category_probabilities(logits[1], rows, answer.categories)
        named: tuple[str, ...] = ()
        completion = 0
        if mode == "exact":
            said = next_token(logits[0], rows)
            if said not in (answer.safe, answer.unsafe):
                raise ModelOutputError("the model answered neither safe nor unsafe")
            if said == answer.unsafe or unsafe >= policy.threshold:
                named = yield from self._decode_list(cache, logits[1])
            completion = max(0, len(named) * (len(answer.separator) + 1) - len(answer.separator))
        verdict, score, categories = decide(unsafe, shares, policy, named)
        prompt_tokens = len(prompt.token_ids) + len(answer.before_verdict) + len(forced)
        return Reading(verdict, score, categories, prompt_tokens, cached, completion)

    def _start(self, held: HeldPrompt, prompt: GuardPrompt) -> Job[int]:
        """Bring the longest known beginning of ``prompt`` into the cache; returns how many tokens cost no compute."""
        cache, prefix_ids = held.cache, prompt.token_ids[: prompt.prefix_tokens]
        kept = held.keep_common(prompt.token_ids)
        if kept >= len(prefix_ids):
            return kept
        cache.truncate(0)
        stored = self._prefixes.find(prefix_ids)
        if stored is not None:
            cache.load_prefix(stored)
            return stored.length
        yield Forward(cache, prefix_ids, [])
        self._prefixes.keep(prefix_ids, cache)
        return 0

    def _decode_list(self, cache: KvCache, logits: Float32) -> Job[tuple[str, ...]]:
        """Greedy decode of the category list from the logits at its start: category, (separator, category)*, end."""
        answer, rows = self._answer, self._rows
        codes = {token: code for code, token in answer.categories.items()}
        named: list[str] = []
        token = next_token(logits, rows)
        while True:
            code = codes.get(token)
            if code is None or code in named:
                raise ModelOutputError("the model's category list cannot be read")
            named.append(code)
            token = next_token((yield Forward(cache, [token], [0]))[0], rows)
            if token == answer.end:
                return tuple(named)
            for expected in answer.separator:
                if token != expected:
                    raise ModelOutputError("the model's category list cannot be read")
                token = next_token((yield Forward(cache, [token], [0]))[0], rows)
