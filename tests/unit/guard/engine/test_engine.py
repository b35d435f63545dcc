from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError as FutureCancelledError

import pytest

from guard.engine.cost import Done, Work
from guard.engine.engine import Engine
from guard.engine.sequence import Float32, Job, Ticket
from guard.engine.settings import EngineSettings
from guard.errors import (
    CancelledError,
    DeadlineError,
    InputTooLongError,
    ModelOutputError,
    OverloadedError,
    UnavailableError,
)
from guard.testing import FakeRunner

WAIT = 10.0


def no_model(seen: tuple[int, ...]) -> Float32:
    raise AssertionError("these jobs ask for no model step")


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeRunner(no_model), EngineSettings(max_queued=3, max_active=2, kv_bytes=100), "test")
    yield engine
    engine.close()


class Steps:
    """A job of ``count`` steps that waits for the test before each one."""

    def __init__(self, count: int, log: list[str] | None = None, name: str = "") -> None:
        self.go = threading.Semaphore(0)
        self.began = threading.Event()
        self.closed = False
        self.done = 0
        self._count, self._log, self._name = count, log, name

    def __call__(self, ticket: Ticket[int]) -> Job[int]:
        self.began.set()
        try:
            for _ in range(self._count):
                assert self.go.acquire(timeout=WAIT)
                self.done += 1
                if self._log is not None:
                    self._log.append(self._name)
                yield None
            return self.done
        finally:
            self.closed = True

    def release(self, steps: int) -> None:
        for _ in range(steps):
            self.go.release()


def idle(engine: Engine) -> bool:
    until = time.monotonic() + WAIT
    while engine.jobs and time.monotonic() < until:
        time.sleep(0.001)
    return engine.jobs == 0 and engine.kv_bytes_in_use == 0


def test_result_and_error_reach_the_caller(engine: Engine) -> None:
    def failing(ticket: Ticket[int]) -> Job[int]:
        yield None
        raise ModelOutputError("broken")

    steps = Steps(2)
    steps.release(2)
    assert engine.submit(steps).future.result(WAIT) == 2
    with pytest.raises(ModelOutputError):
        engine.submit(failing).future.result(WAIT)
    assert engine.alive and idle(engine)


def test_jobs_take_turns(engine: Engine) -> None:
    log: list[str] = []
    first, second = Steps(3, log, "a"), Steps(3, log, "b")
    tickets = [engine.submit(first), engine.submit(second)]
    first.release(3)
    second.release(3)
    for ticket in tickets:
        ticket.future.result(WAIT)
    assert log in (
        ["a", "b", "a", "b", "a", "b"],
        ["a", "a", "b", "a", "b", "b"],
    )  # the first may start before the second


def test_cancel_stops_before_the_next_step_and_frees(engine: Engine) -> None:
    steps = Steps(100)
    ticket = engine.submit(steps, kv_bytes=60)
    assert steps.began.wait(WAIT)
    ticket.cancel()
    steps.release(100)
    with pytest.raises(CancelledError):
        ticket.future.result(WAIT)
    assert steps.done <= 1 and steps.closed and idle(engine)


def test_cancelled_queued_job_never_runs(engine: Engine) -> None:
    running, waiting = Steps(1), Steps(1)
    first = engine.submit(running, kv_bytes=100)
    second = engine.submit(waiting, kv_bytes=100)
    second.cancel()
    running.release(1)
    first.future.result(WAIT)
    with pytest.raises(CancelledError):
        second.future.result(WAIT)
    assert not waiting.began.is_set()


@pytest.mark.parametrize("hang_up", [False, True])
def test_callers_behind_others_memory_are_told_when_they_leave(engine: Engine, hang_up: bool) -> None:
    running, waiting = Steps(9), Steps(1)
    first = engine.submit(running, kv_bytes=100)
    second = engine.submit(waiting, kv_bytes=100)
    late = engine.submit(waiting, kv_bytes=100, deadline=time.monotonic() + 0.02)
    time.sleep(0.03)
    second.cancel()
    if hang_up:
        second.future.cancel()  # as asyncio does when a call is cancelled
    running.release(2)
    with pytest.raises((CancelledError, FutureCancelledError)):
        second.future.result(WAIT)
    with pytest.raises(DeadlineError):
        late.future.result(WAIT)
    assert not first.future.done() and engine.jobs == 1
    running.release(9)
    first.future.result(WAIT)


def test_callers_behind_held_memory_are_told_too(engine: Engine) -> None:
    engine.hold(50)
    waiting = Steps(1)
    left, late = engine.submit(waiting, kv_bytes=60), engine.submit(waiting, deadline=time.monotonic() + 9, kv_bytes=60)
    late.deadline = time.monotonic()
    left.cancel()
    with pytest.raises(CancelledError):
        left.future.result(WAIT)
    with pytest.raises(DeadlineError):
        late.future.result(WAIT)
    last = engine.submit(waiting, kv_bytes=60)
    waiting.release(1)
    engine.release(50)
    assert last.future.result(WAIT) == 1 and idle(engine)
    with pytest.raises(OverloadedError):
        engine.hold(101)


def test_cancelled_future_does_not_kill_the_engine(engine: Engine) -> None:
    running, waiting = Steps(1), Steps(1)
    first = engine.submit(running, kv_bytes=100)
    assert engine.submit(waiting, kv_bytes=100).future.cancel()  # as asyncio does when a call is cancelled
    running.release(1)
    assert first.future.result(WAIT) == 1
    assert idle(engine) and engine.alive and not waiting.began.is_set()


def test_deadline_is_checked_before_every_step(engine: Engine) -> None:
    steps = Steps(100)
    with pytest.raises(DeadlineError):
        engine.submit(steps, deadline=time.monotonic() - 1)
    ticket = engine.submit(steps, deadline=time.monotonic() + 0.05)
    assert steps.began.wait(WAIT)
    time.sleep(0.06)
    steps.release(100)
    with pytest.raises(DeadlineError):
        ticket.future.result(WAIT)
    assert steps.done <= 1


def test_full_queue_refuses_with_a_time_to_come_back(engine: Engine) -> None:
    running = [Steps(1) for _ in range(2)]
    tickets = [engine.submit(steps) for steps in running]
    for steps in running[:1]:
        assert steps.began.wait(WAIT)
    queued = [Steps(1) for _ in range(4)]
    with pytest.raises(OverloadedError) as caught:
        for steps in queued:
            tickets.append(engine.submit(steps))
    assert caught.value.retry_after_s > 0
    for steps in running + queued:
        steps.release(1)
    assert [ticket.future.result(WAIT) for ticket in tickets] == [1] * len(tickets)


def test_cancelled_jobs_make_room_in_a_full_queue(engine: Engine) -> None:
    running = [Steps(1) for _ in range(2)]
    tickets = [engine.submit(steps) for steps in running]
    assert all(steps.began.wait(WAIT) for steps in running[:1])
    waiting = [engine.submit(Steps(1), kv_bytes=1) for _ in range(3)]
    for ticket in waiting:
        ticket.cancel()
    late = Steps(1)
    late.release(1)
    tickets.append(engine.submit(late))
    for ticket in waiting:
        with pytest.raises(CancelledError):
            ticket.future.result(WAIT)
    for steps in running:
        steps.release(1)
    assert [ticket.future.result(WAIT) for ticket in tickets] == [1, 1, 1]


def test_kv_budget_holds_jobs_back_in_order(engine: Engine) -> None:
    big, bigger, small = Steps(1), Steps(1), Steps(1)
    first = engine.submit(big, kv_bytes=60)
    second = engine.submit(bigger, kv_bytes=80)
    third = engine.submit(small, kv_bytes=10)
    assert big.began.wait(WAIT)
    assert engine.kv_bytes_in_use == 60
    assert not bigger.began.is_set() and not small.began.is_set()  # the head of the queue is not overtaken
    for steps in (big, bigger, small):
        steps.release(1)
    assert [ticket.future.result(WAIT) for ticket in (first, second, third)] == [1, 1, 1]
    with pytest.raises(InputTooLongError):
        engine.submit(small, kv_bytes=101)


def test_close_fails_what_is_left(engine: Engine) -> None:
    running, waiting = Steps(5), Steps(1)
    tickets = [engine.submit(running, kv_bytes=100), engine.submit(waiting, kv_bytes=100)]
    assert running.began.wait(WAIT)
    running.release(1)
    engine.close()
    for ticket in tickets:
        with pytest.raises(UnavailableError):
            ticket.future.result(WAIT)
    assert running.closed and not engine.alive
    with pytest.raises(UnavailableError):
        engine.submit(waiting)


def test_an_abandoned_engine_leaves_nobody_waiting(engine: Engine) -> None:
    """Failure test 17: the thread hangs in a job's step; what it brings when it comes back after all is dropped."""
    hanging, waiting = Steps(1), Steps(1)
    tickets = [engine.submit(hanging, kv_bytes=60), *(engine.submit(waiting, kv_bytes=60) for _ in range(2))]
    assert hanging.began.wait(WAIT)
    began = engine.round_began
    assert began is not None and began <= time.monotonic()
    engine.abandon()
    for ticket in tickets:
        with pytest.raises(UnavailableError):
            ticket.future.result(0)
    with pytest.raises(UnavailableError):
        engine.submit(waiting)
    assert not engine.alive
    engine.close()  # does not wait for the thread
    hanging.release(1)
    until = time.monotonic() + WAIT
    while (engine.round_began is not None or not hanging.closed) and time.monotonic() < until:
        time.sleep(0.001)
    assert hanging.closed and not waiting.began.is_set()
    with pytest.raises(UnavailableError):
        tickets[0].future.result(0)


@pytest.mark.filterwarnings("default::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_tells_everybody(engine: Engine) -> None:
    """Failure test 17: also those whose turn had come and who had not begun."""

    def crashing(ticket: Ticket[int]) -> Job[int]:
        yield None
        if go.wait(WAIT):
            raise SystemExit
        return 0

    def endless(ticket: Ticket[int]) -> Job[int]:
        while True:
            yield None

    go = threading.Event()
    tickets = [engine.submit(crashing), *(engine.submit(endless) for _ in range(2))]
    go.set()
    for ticket in tickets:
        with pytest.raises(UnavailableError):
            ticket.future.result(WAIT)
    assert isinstance(engine.failure, SystemExit)
    assert not engine.alive and engine.round_began is None


def test_an_idle_engine_is_in_no_round(engine: Engine) -> None:
    steps = Steps(1)
    steps.release(1)
    engine.submit(steps).future.result(WAIT)
    assert idle(engine)
    until = time.monotonic() + WAIT
    while engine.round_began is not None and time.monotonic() < until:
        time.sleep(0.001)
    assert engine.round_began is None


def test_a_paused_job_waits_without_turning_in_circles(engine: Engine) -> None:
    steps, other = Steps(4), Steps(1)
    ticket = engine.submit(steps, kv_bytes=40)
    steps.release(1)
    assert steps.began.wait(WAIT)
    ticket.pause()
    steps.release(3)
    while steps.done == 0:
        time.sleep(0.001)
    time.sleep(0.05)
    done, cpu_s = steps.done, time.process_time()
    assert done <= 2  # the step that was running when it was paused
    time.sleep(0.3)
    assert time.process_time() - cpu_s < 0.2
    assert steps.done == done and engine.kv_bytes_in_use == 40 and engine.jobs == 1
    other.release(1)
    assert engine.submit(other).future.result(WAIT) == 1
    ticket.unpause()
    assert ticket.future.result(WAIT) == 4
    assert idle(engine)


def test_paused_jobs_leave_their_turns_to_others(engine: Engine) -> None:
    """More of them than may run at a time."""
    paused = []
    for _ in range(4):
        steps = Steps(9)
        steps.release(1)
        paused.append(engine.submit(steps))
        assert steps.began.wait(WAIT)
        paused[-1].pause()
        steps.release(8)
    quick = Steps(1)
    quick.release(1)
    assert engine.submit(quick).future.result(WAIT) == 1
    for ticket in paused:
        ticket.unpause()
    assert [ticket.future.result(WAIT) for ticket in paused] == [9] * 4


@pytest.mark.parametrize("late", [False, True])
def test_a_paused_job_ends_when_nobody_waits_for_it(engine: Engine, late: bool) -> None:
    steps = Steps(100)
    ticket = engine.submit(steps, kv_bytes=40)
    assert steps.began.wait(WAIT)
    ticket.pause()
    steps.release(1)
    if late:
        ticket.deadline = time.monotonic() + 0.05
    else:
        ticket.cancel()
    with pytest.raises(DeadlineError if late else CancelledError):
        ticket.future.result(WAIT)
    assert steps.done <= 1 and steps.closed and idle(engine)


def test_callers_take_turns_in_the_queue(engine: Engine) -> None:
    log: list[str] = []
    blockers = [Steps(1), Steps(1)]
    tickets = [engine.submit(steps, kv_bytes=50) for steps in blockers]
    assert all(steps.began.wait(WAIT) for steps in blockers[:1])
    waiting = [Steps(1, log, name) for name in "aab"]
    tickets += [engine.submit(steps, kv_bytes=100, caller=steps._name) for steps in waiting]
    for steps in blockers + waiting:
        steps.release(1)
    for ticket in tickets:
        ticket.future.result(WAIT)
    assert log == ["a", "b", "a"]


def test_an_estimate_is_not_believed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused teaches nothing, so an idle engine looks again after a while."""
    monkeypatch.setattr("guard.engine.engine._STALE_S", 0.3)
    engine = Engine(FakeRunner(no_model), EngineSettings(), "test")
    try:
        for _ in range(9):
            steps = Steps(1)
            steps.release(1)
            assert engine.submit(steps, work=Work(10)).future.result(WAIT) == 1
        engine._scheduler.cost.note_job(Work(10), Done(10))
        engine._scheduler.cost.note_prefill(100, 1e6)
        soon = time.monotonic() + 1000
        with pytest.raises(DeadlineError, match="the deadline leaves 1e"):
            engine.submit(Steps(1), deadline=soon, work=Work(1000))
        time.sleep(0.35)
        steps = Steps(1)
        steps.release(1)
        assert engine.submit(steps, deadline=soon, work=Work(1000)).future.result(WAIT) == 1
    finally:
        engine.close()
