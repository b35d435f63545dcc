from __future__ import annotations

import time
from concurrent.futures import CancelledError as FutureCancelledError

import numpy as np
import pytest

from guard.engine.kv_cache import KvCache
from guard.engine.sequence import Decode, Job, Ticket
from guard.errors import CancelledError, DeadlineError, ModelOutputError
from guard.testing import TINY_SHAPE


class Counter:
    """A job of three steps; ``closed`` tells that it let go of what it held."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.closed = False

    def __call__(self, ticket: Ticket[int]) -> Job[int]:
        cache = KvCache(TINY_SHAPE, 4)
        try:
            for token in range(3):
                logits = yield Decode((cache,), (token,))
                self.got.append(len(logits))
            return sum(self.got)
        finally:
            self.closed = True


LOGITS = np.zeros((1, 4), np.float32)


def test_a_job_runs_from_request_to_request_and_its_caller_hears_when_it_is_settled() -> None:
    job = Counter()
    ticket = Ticket(job, 0, None)
    request = ticket.start()
    for token in range(3):
        assert isinstance(request, Decode) and request.token_ids == (token,) and not ticket.ended
        request = ticket.resume(LOGITS)
    assert request is None and ticket.ended and job.closed
    assert not ticket.future.done()  # not before the engine has taken the memory back
    ticket.settle()
    assert ticket.future.result(0) == 3


def test_failing_a_job_closes_it_and_tells_its_caller_later() -> None:
    job = Counter()
    ticket = Ticket(job, 0, None)
    ticket.start()
    ticket.fail(ModelOutputError("broken"))
    assert job.closed and ticket.ended and not ticket.future.done()
    ticket.fail(CancelledError("too late to matter"))
    ticket.settle()
    with pytest.raises(ModelOutputError):
        ticket.future.result(0)


def test_what_a_job_raises_is_its_result() -> None:
    def failing(ticket: Ticket[int]) -> Job[int]:
        yield None
        raise KeyError("its own bug")

    ticket = Ticket(failing, 0, None)
    ticket.start()
    ticket.resume()
    ticket.settle()
    with pytest.raises(KeyError):
        ticket.future.result(0)


@pytest.mark.parametrize("late", [False, True])
def test_an_unwanted_job_never_begins(late: bool) -> None:
    job = Counter()
    ticket = Ticket(job, 0, time.monotonic() - 1 if late else None)
    if not late:
        ticket.cancel()
    assert ticket.start() is None and ticket.ended and ticket.started is None
    ticket.settle()
    with pytest.raises(DeadlineError if late else CancelledError):
        ticket.future.result(0)
    assert not job.closed


def test_unwanted_says_why() -> None:
    ticket = Ticket(Counter(), 0, time.monotonic() + 100)
    assert ticket.unwanted() is None
    ticket.deadline = time.monotonic()
    assert isinstance(ticket.unwanted(), DeadlineError)
    ticket.cancel()
    assert isinstance(ticket.unwanted(), CancelledError)


def test_a_future_that_its_caller_cancelled_needs_no_answer() -> None:
    job = Counter()
    ticket = Ticket(job, 0, None)
    assert ticket.future.cancel() and isinstance(ticket.unwanted(), CancelledError)
    assert ticket.start() is None and ticket.ended and not job.closed
    ticket.fail(ModelOutputError("broken"))
    ticket.settle()
    with pytest.raises(FutureCancelledError):
        ticket.future.result(0)


def test_a_started_job_cannot_be_cancelled_by_its_future() -> None:
    ticket = Ticket(Counter(), 0, None)
    ticket.start()
    assert not ticket.future.cancel()


def test_a_finished_ticket_has_its_result() -> None:
    ticket = Ticket.finished("known")
    assert ticket.ended and ticket.future.result(0) == "known"
    ticket.cancel()
    ticket.settle()


def test_queue_time_ends_with_the_start() -> None:
    ticket = Ticket(Counter(), 0, None)
    ticket.submitted -= 5
    assert 5 <= ticket.queue_s < 6
    ticket.start()
    waited = ticket.queue_s
    time.sleep(0.002)
    assert ticket.queue_s == waited
