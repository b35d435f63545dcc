from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.auth.caller import Caller, Quota
from server.auth.quota import Quotas
from server.errors import QuotaExceededError


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused_for_s(quotas: Quotas, caller: Caller, size: int = 1) -> float:
    with pytest.raises(QuotaExceededError) as caught, quotas.admit(caller, size):
        pass
    return caught.value.retry_after_s


def served(quotas: Quotas, caller: Caller, size: int = 1) -> None:
    with quotas.admit(caller, size):
        pass


def test_requests_a_minute() -> None:
    clock = Clock()
    quotas, caller = Quotas(clock), Caller("c", quota=Quota(requests_per_minute=6))
    for _ in range(6):
        served(quotas, caller)
    assert refused_for_s(quotas, caller) == pytest.approx(10)
    clock.now += 4
    assert refused_for_s(quotas, caller) == pytest.approx(6)  # what was refused is not counted
    clock.now += 6.001
    served(quotas, caller)
    assert refused_for_s(quotas, caller) == pytest.approx(10, abs=0.1)
    served(quotas, Caller("another", quota=Quota(requests_per_minute=6)))
    clock.now += 3600
    for _ in range(6):
        served(quotas, caller)  # an hour of silence is worth one minute
    refused_for_s(quotas, caller)


def test_bytes_a_minute_and_what_a_stream_adds() -> None:
    clock = Clock()
    quotas, caller = Quotas(clock), Caller("c", quota=Quota(bytes_per_minute=600))
    served(quotas, caller, 1200)  # more than a minute's worth is served once, and paid for afterwards
    assert refused_for_s(quotas, caller) == pytest.approx(60.1)
    clock.now += 61
    with quotas.admit(caller, 0) as lease:
        lease.add(8)
        lease.add(100)
        with pytest.raises(QuotaExceededError):
            lease.add(1)
    assert refused_for_s(quotas, caller) > 9


def test_tokens_are_paid_afterwards() -> None:
    clock = Clock()
    quotas, caller = Quotas(clock), Caller("c", quota=Quota(tokens_per_minute=60))
    with quotas.admit(caller, 1) as lease:
        lease.charge(50)
        lease.add(10**6)  # ten are left, and bytes have no limit
        lease.charge(130)  # 120 in debt
        with pytest.raises(QuotaExceededError):
            lease.add(1)
    assert refused_for_s(quotas, caller) == pytest.approx(121)
    served(quotas, Caller("another", quota=Quota(tokens_per_minute=60)))
    clock.now += 120
    assert refused_for_s(quotas, caller) == pytest.approx(1)
    clock.now += 1.001
    served(quotas, caller)


def test_refused_for_tokens_takes_no_bytes_and_no_request() -> None:
    clock = Clock()
    quota = Quota(requests_per_minute=2, bytes_per_minute=10, tokens_per_minute=60)
    quotas, caller = Quotas(clock), Caller("c", quota=quota)
    with quotas.admit(caller, 5) as lease:
        lease.charge(60)
    for _ in range(5):
        refused_for_s(quotas, caller, 5)
    clock.now += 1.001
    served(quotas, caller, 5)


@given(st.lists(st.tuples(st.floats(0, 90), st.integers(0, 5000)), max_size=60), st.floats(1, 10_000))
def test_no_more_tokens_than_the_rate_and_one_call(calls: list[tuple[float, int]], limit: float) -> None:
    clock = Clock()
    quotas, caller = Quotas(clock), Caller("c", quota=Quota(tokens_per_minute=limit))
    total, largest, began = 0, 0, clock.now
    for wait, tokens in calls:
        clock.now += wait
        try:
            with quotas.admit(caller, 1) as lease:
                lease.charge(tokens)
        except QuotaExceededError as error:
            assert error.retry_after_s > 0
            continue
        total, largest = total + tokens, max(largest, tokens)
        assert total <= limit * (1 + (clock.now - began) / 60) + largest + 1e-6


def test_requests_at_the_same_time() -> None:
    quotas, caller = Quotas(Clock()), Caller("c", quota=Quota(concurrent=2))
    with quotas.admit(caller, 1):
        with quotas.admit(caller, 1):
            assert refused_for_s(quotas, caller) > 0
        served(quotas, caller)
    with pytest.raises(RuntimeError), quotas.admit(caller, 1):
        raise RuntimeError
    with quotas.admit(caller, 1), quotas.admit(caller, 1):
        pass


def test_another_quota_for_the_same_caller() -> None:
    quotas = Quotas(Clock())
    before, after = (Caller("c", quota=Quota(concurrent=limit)) for limit in (1, 2))
    with quotas.admit(before, 1):
        refused_for_s(quotas, before)
        with quotas.admit(after, 1):
            refused_for_s(quotas, after)
    with quotas.admit(after, 1), quotas.admit(after, 1):
        pass


def test_no_quota_is_no_limit() -> None:
    quotas, caller = Quotas(Clock()), Caller("c")
    for _ in range(1000):
        served(quotas, caller, 10**9)


@given(
    st.lists(st.tuples(st.floats(0, 90), st.integers(1, 5000)), max_size=60),
    st.floats(1, 1000),
    st.floats(1, 10_000),
)
def test_no_more_than_the_rate_ever(arrivals: list[tuple[float, int]], requests: float, size: float) -> None:
    """Over any start, what is served is at most a minute's worth, the refill, and one request more."""
    clock = Clock()
    quotas, caller = Quotas(clock), Caller("c", quota=Quota(requests_per_minute=requests, bytes_per_minute=size))
    count, total, largest, began = 0, 0, 0, clock.now
    for wait, wanted in arrivals:
        clock.now += wait
        try:
            served(quotas, caller, wanted)
        except QuotaExceededError as error:
            assert error.retry_after_s > 0
            continue
        count, total, largest = count + 1, total + wanted, max(largest, wanted)
        minutes = 1 + (clock.now - began) / 60
        assert count <= requests * minutes + 1e-6
        assert total <= size * minutes + largest + 1e-6


@given(st.lists(st.integers(1, 5000), max_size=20), st.floats(1, 1000), st.floats(1, 10_000))
def test_whoever_waits_as_told_is_served(sizes: list[int], requests: float, size: float) -> None:
    clock = Clock()
    quotas, caller = Quotas(clock), Caller("c", quota=Quota(requests_per_minute=requests, bytes_per_minute=size))
    for wanted in sizes:
        for _ in range(2):  # bytes and requests may each refuse once
            try:
                served(quotas, caller, wanted)
                break
            except QuotaExceededError as error:
                clock.now += error.retry_after_s + 1e-3
        else:
            served(quotas, caller, wanted)
