from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.cache import CacheLimits, VerdictCache
from guard.conversation import Conversation, Message, Role, Target
from guard.normalize import ViewKind
from guard.policy import Policy
from guard.verdict import CategoryScore, DecidedBy, Judgement, Verdict, Window


def judgement(score: float = 0.9, categories: int = 13) -> Judgement:
    return Judgement(
        verdict=Verdict.UNSAFE,
        unsafe_score=score,
        categories=tuple(CategoryScore(f"S{n}", "Violence", score / (n + 1), False) for n in range(categories)),
        mode="one_pass",
        forged_delimiters=False,
        view=ViewKind.RAW,
        window=Window(0, 9, 0, 1),
        context_left_out=0,
        passes=2,
        prompt_tokens=30,
        cached_tokens=10,
        completion_tokens=4,
        queue_s=0.1,
        model_s=0.2,
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def conversation(*texts: str) -> Conversation:
    return Conversation(tuple(Message((Role.USER, Role.ASSISTANT)[i % 2], text) for i, text in enumerate(texts)))


def cache_of(entries: int = 10, memory: int = 1 << 20, clock: Clock | None = None) -> VerdictCache:
    return VerdictCache(CacheLimits(entries, memory, 60.0), "digest", clock or Clock())


def key(cache: VerdictCache, *texts: str) -> bytes | None:
    return cache.key(conversation(*texts), Target.PROMPT, Policy(), "one_pass")


def test_a_hit_is_the_same_verdict_without_compute() -> None:
    cache = cache_of()
    assert cache.get(key(cache, "a")) is None
    cache.put(key(cache, "a"), judgement())
    found = cache.get(key(cache, "a"))
    assert found == replace(
        judgement(),
        decided_by=DecidedBy.CACHE,
        cached_tokens=30,
        completion_tokens=0,
        queue_s=0.0,
        model_s=0.0,
    )
    assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)


def test_every_part_of_the_question_is_part_of_the_key() -> None:
    cache = cache_of()
    plain, policy = conversation("a"), Policy()
    keys = [
        cache.key(plain, Target.PROMPT, policy, "one_pass"),
        cache.key(plain, Target.RESPONSE, policy, "one_pass"),
        cache.key(plain, Target.PROMPT, Policy(threshold=0.4), "one_pass"),
        cache.key(plain, Target.PROMPT, policy, "exact"),
        cache.key(conversation("b"), Target.PROMPT, policy, "one_pass"),
        cache.key(conversation("a", "b"), Target.PROMPT, policy, "one_pass"),
        cache.key(Conversation((Message(Role.ASSISTANT, "a"),)), Target.PROMPT, policy, "one_pass"),
        VerdictCache(CacheLimits(1), "other digest").key(plain, Target.PROMPT, policy, "one_pass"),
        cache_of().key(plain, Target.PROMPT, policy, "one_pass"),  # another process: another secret
        cache.key(plain, Target.PROMPT, policy, "one_pass", "a caller"),
        cache.key(plain, Target.PROMPT, policy, "one_pass", "another caller"),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.key(conversation("a"), Target.PROMPT, Policy(), "one_pass")


_TEXTS = st.lists(st.text("ab userasistnt", min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=3)


@settings(deadline=None)
@given(_TEXTS, _TEXTS)
def test_conversations_have_the_same_key_only_if_they_are_the_same(one: list[str], other: list[str]) -> None:
    cache = cache_of()
    assert (key(cache, *one) == key(cache, *other)) == (one == other)


def test_the_least_recently_used_is_dropped() -> None:
    cache = cache_of(entries=2)
    for text in "ab":
        cache.put(key(cache, text), judgement())
    assert cache.get(key(cache, "a")) is not None
    cache.put(key(cache, "c"), judgement())
    assert [cache.get(key(cache, text)) is not None for text in "abc"] == [True, False, True]


def test_entries_expire() -> None:
    clock = Clock()
    cache = cache_of(clock=clock)
    cache.put(key(cache, "a"), judgement())
    clock.now += 59.9
    assert cache.get(key(cache, "a")) is not None
    clock.now += 0.1
    assert cache.get(key(cache, "a")) is None
    assert (len(cache), cache.memory_bytes) == (0, 0)


def test_memory_is_bounded() -> None:
    cache = cache_of(entries=10_000, memory=50_000)
    for number in range(100):
        cache.put(key(cache, str(number)), judgement())
    assert 0 < len(cache) < 30
    assert cache.memory_bytes <= 50_000
    small = cache_of(memory=100)
    small.put(key(small, "a"), judgement())
    assert len(small) == 0


def test_no_entries_is_no_cache() -> None:
    cache = cache_of(entries=0)
    assert key(cache, "a") is None
    cache.put(None, judgement())
    assert cache.get(None) is None
    assert (cache.hits, cache.misses, len(cache)) == (0, 0, 0)


def test_nothing_of_the_text_is_kept() -> None:
    """Failure test 24: the cache holds digests and verdicts."""
    cache = cache_of()
    cache.put(key(cache, "canary-7731"), judgement())
    assert "canary" not in repr(vars(cache))


def test_the_estimate_of_an_entrys_memory_is_not_below_the_truth() -> None:
    cache = cache_of(entries=2000, memory=1 << 30)
    keys = [key(cache, str(number)) for number in range(1000)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number, each in enumerate(keys):
        cache.put(each, judgement(number / 1000))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used == pytest.approx(cache.memory_bytes, rel=0.5)
    assert used <= cache.memory_bytes


def test_threads_share_it() -> None:
    cache = cache_of(entries=8)

    def work(seed: int) -> None:
        for number in range(500):
            each = key(cache, str((seed * 7 + number) % 20))
            if cache.get(each) is None:
                cache.put(each, judgement())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 8
    assert cache.hits + cache.misses == 2000
    assert cache.memory_bytes == 8 * (cache.memory_bytes // 8)
