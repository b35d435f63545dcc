"""Who goes next, and who may wait at all."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engine.cost import Work
from guard.engine.fair_queue import PLACES_FOR_EACH_FREE, FairQueue
from guard.engine.sequence import Job, Ticket


def nothing(ticket: Ticket[None]) -> Job[None]:
    raise AssertionError("is not run")


def job(caller: str = "", tokens: int = 10) -> Ticket[None]:
    return Ticket(nothing, 0, None, Work(tokens), caller)


def order(queue: FairQueue) -> str:
    return "".join(ticket.caller or "-" for ticket in queue.in_order())


def filled(callers: str, tokens: int = 10) -> FairQueue:
    queue = FairQueue(1000, 1 << 20)
    for caller in callers:
        queue.add(job(caller.replace("-", ""), tokens))
    return queue


def test_jobs_of_one_caller_keep_their_order() -> None:
    queue, jobs = FairQueue(9, 999), [job(tokens=tokens) for tokens in (5, 1, 9, 3)]
    for each in jobs:
        queue.add(each)
    assert queue.in_order() == jobs
    assert (len(queue), queue.tokens) == (4, 18)


def test_callers_take_turns_however_many_jobs_they_send() -> None:
    assert order(filled("aaaaaabbc")) == "abcabaaaa"
    assert order(filled("---a")) == "-a--"


def test_turns_are_counted_in_tokens() -> None:
    queue = FairQueue(99, 1 << 20)
    for caller, tokens in [*[("a", 30)] * 3, *[("b", 10)] * 6]:
        queue.add(job(caller, tokens))
    assert order(queue) == "abbbabbba"


def test_who_asked_for_nothing_has_saved_up_nothing() -> None:
    queue = filled("aaaaaaaa")
    for ticket in queue.in_order()[:4]:
        queue.take(ticket)
    for _ in range(4):
        queue.add(job("b"))
    assert order(queue).startswith("bab")  # and not bbbb


def test_who_left_is_not_charged() -> None:
    queue = filled("aaaabb")
    queue.remove(queue.in_order()[::2])
    assert (len(queue), queue.tokens) == (3, 30)
    assert order(queue) in ("aba", "bab", "aab", "baa", "abb", "bba")
    rest = queue.in_order()
    queue.remove(rest)
    assert (len(queue), queue.tokens, queue.in_order()) == (0, 0, [])
    assert not queue._lanes


def test_ahead_are_those_who_would_be_served_first() -> None:
    queue = filled("aaaab")
    assert len(queue.ahead_of("a")) == 5
    assert [ticket.caller for ticket in queue.ahead_of("c")] == ["a", "b"]
    assert len(queue.ahead_of("b")) == 3  # a b a, then this one before or after the next


@pytest.mark.parametrize("caller", ["", "a"])
def test_number_and_tokens_are_limited(caller: str) -> None:
    queue = FairQueue(100, 1000)
    assert queue.has_room(job(caller, 5000))  # nobody else waits
    while queue.has_room(job(caller)):
        queue.add(job(caller))
    assert len(queue) == (80 if caller else 100)
    queue = FairQueue(100, 1000)
    while queue.has_room(job(caller, 100)):
        queue.add(job(caller, 100))
    assert queue.tokens == (800 if caller else 1000)
    assert not queue.has_room(job(caller, 900))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=300), st.integers(2, 80))
def test_nobody_can_fill_the_queue_alone(arrivals: list[str], places: int) -> None:
    """Whoever has nothing waiting finds room as long as the others together are fewer than the places."""
    queue, held = FairQueue(places, 1 << 30), Counter[str]()
    for caller in arrivals:
        if queue.has_room(job(caller)):
            queue.add(job(caller))
            held[caller] += 1
        assert max(held.values()) <= max(1, places * PLACES_FOR_EACH_FREE // (PLACES_FOR_EACH_FREE + 1))
    if len(held) == 1:
        assert queue.has_room(job("new"))


@given(st.integers(0, 1 << 32))
def test_unfairness_is_bounded(seed: int) -> None:
    """While two callers both wait, the tokens they are given differ by at most one job of each."""
    chance = random.Random(seed)
    queue, longest = FairQueue(1 << 20, 1 << 40), chance.choice([1, 50, 2000])
    sent = {caller: deque(job(caller, chance.randint(1, longest)) for _ in range(60)) for caller in "abc"}
    given_tokens, both_since = Counter[str](), Counter[str]()
    for _ in range(200):
        caller = chance.choice("aaaaab" if chance.random() < 0.9 else "abc")
        for _ in range(chance.choice([0, 1, 1, 8])):
            if sent[caller]:
                queue.add(sent[caller].popleft())
        waiting = {ticket.caller for ticket in queue.in_order()}
        if {"a", "b"} <= waiting:
            apart = (given_tokens["a"] - both_since["a"]) - (given_tokens["b"] - both_since["b"])
            assert abs(apart) <= 2 * longest
        else:
            both_since = given_tokens.copy()
        if waiting and chance.random() < 0.7:
            first = queue.in_order()[0]
            queue.take(first)
            given_tokens[first.caller] += first.work.tokens
