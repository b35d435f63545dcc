from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import OverloadedError
from server.limits import Gate, Limits


def test_requests_and_bytes_are_both_limits() -> None:
    gate = Gate(Limits(requests=2, bytes=100))
    with gate.admit(60):
        with pytest.raises(OverloadedError, match="60 bytes") as caught, gate.admit(41):
            pass
        assert 0.1 <= caught.value.retry_after_s <= 30
        with gate.admit(40):
            with pytest.raises(OverloadedError, match="2 requests"), gate.admit(0):
                pass
            assert (gate.requests, gate.bytes) == (2, 100)
    assert (gate.requests, gate.bytes) == (0, 0)


def test_a_failed_call_gives_its_permit_back() -> None:
    gate = Gate(Limits(requests=1, bytes=10))
    for _ in range(3):
        with pytest.raises(RuntimeError), gate.admit(10):
            raise RuntimeError
    assert (gate.requests, gate.bytes) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=60))
def test_never_above_the_limits_and_empty_at_the_end(steps: list[tuple[int, bool]]) -> None:
    """``steps``: sizes that ask to enter, and whether somebody leaves afterwards."""
    gate = Gate(Limits(requests=5, bytes=80))
    inside: list[contextlib.ExitStack] = []
    for size, leave in steps:
        stack = contextlib.ExitStack()
        with contextlib.suppress(OverloadedError):
            stack.enter_context(gate.admit(size))
            inside.append(stack)
        assert gate.requests == len(inside) <= 5
        assert gate.bytes <= 80
        if leave and inside:
            inside.pop(0).close()
    for stack in inside:
        stack.close()
    assert (gate.requests, gate.bytes) == (0, 0)


def test_a_permit_grows_with_what_a_stream_sends() -> None:
    gate = Gate(Limits(requests=2, bytes=100))
    with gate.admit(10) as permit:
        permit.add(60)
        assert gate.bytes == permit.bytes == 70
        with pytest.raises(OverloadedError):
            permit.add(31)
        with pytest.raises(OverloadedError), gate.admit(31):
            pass
        permit.add(30)
        assert (gate.requests, gate.bytes) == (1, 100)
    assert gate.requests == gate.bytes == 0


def test_no_caller_gets_all_the_room() -> None:
    gate, inside = Gate(Limits(requests=20, bytes=10_000)), contextlib.ExitStack()
    with inside:
        while True:
            try:
                inside.enter_context(gate.admit(10, "greedy"))
            except OverloadedError as error:
                assert "the rest of the room is for others" in str(error)
                break
        assert gate.requests == 16
        for caller in ("b", "c", "d", "e"):
            inside.enter_context(gate.admit(10, caller))
        with pytest.raises(OverloadedError, match="the limit"):
            inside.enter_context(gate.admit(10, "f"))
    with inside:
        for _ in range(20):  # nobody in particular may have everything
            inside.enter_context(gate.admit(10))
    assert gate.requests == gate.bytes == 0
    assert not gate._requests_of and not gate._bytes_of


def test_bytes_are_shared_too() -> None:
    gate = Gate(Limits(requests=100, bytes=1000))
    with gate.admit(900, "first"), pytest.raises(OverloadedError, match="no room"), gate.admit(90, "first"):
        pass
    with gate.admit(500, "greedy") as permit:
        permit.add(200)
        with pytest.raises(OverloadedError, match="no room"):
            permit.add(300)
        with gate.admit(290, "modest"):
            assert gate.bytes == 990
    assert gate.bytes == 0


def test_bytes_that_a_stream_forgets_are_free_again() -> None:
    gate = Gate(Limits(requests=1, bytes=100))
    with gate.admit(60) as permit:
        permit.forget(50)
        permit.add(80)
        assert (gate.bytes, permit.bytes) == (90, 90)
    assert gate.bytes == 0
