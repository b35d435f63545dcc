"""Who gets the next step, on a clock that only steps move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from guard.engine.decode_batch import DecodeBatch
from guard.engine.kv_cache import KvCache
from guard.engine.scheduler import Scheduler
from guard.engine.sequence import Decode, Float32, Forward, Job, Ticket
from guard.engine.settings import EngineSettings
from guard.errors import ModelOutputError, OverloadedError
from guard.testing import TINY_SHAPE, FakeRunner

SETTINGS = EngineSettings(prefill_chunk=256, step_s=0.15)
FIXED_S, TOKEN_S = 0.02, 0.001


class LoggingRunner(FakeRunner):
    """Notes what each step was for, and lets its time pass."""

    def __init__(self) -> None:
        super().__init__(lambda seen: np.zeros(TINY_SHAPE.vocab_size, np.float32))
        self.now = 0.0
        self.log: list[tuple[str, int]] = []  # ("chunk", tokens) or ("batch", rows)
        self.chunked: list[KvCache] = []
        self.breaks = ""

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        self._step("chunk", len(token_ids))
        self.chunked.append(cache)
        return super().forward(cache, token_ids, wanted)

    def decode(self, batch: DecodeBatch, token_ids: Sequence[int]) -> Float32:
        self._step("batch", len(token_ids))
        steps = zip(batch.caches, token_ids, strict=True)
        return np.concatenate([FakeRunner.forward(self, cache, [token], [0]) for cache, token in steps])

    def _step(self, kind: str, count: int) -> None:
        self.now += FIXED_S + count * TOKEN_S
        self.log.append((kind, count))
        if self.breaks == kind:
            raise RuntimeError("broken")


@pytest.fixture
def runner() -> LoggingRunner:
    return LoggingRunner()


@pytest.fixture
def scheduler(runner: LoggingRunner) -> Scheduler:
    return Scheduler(runner, SETTINGS, lambda: runner.now)


def prompt(tokens: int, cache: KvCache | None = None) -> Ticket[float]:
    """A job that reads a prompt; its result is the sum of the logits' shape, to see that it got some."""

    def job(ticket: Ticket[float]) -> Job[float]:
        logits = yield Forward(cache or KvCache(TINY_SHAPE, tokens), [1] * tokens, [tokens - 1])
        return float(len(logits))

    return Ticket(job, 0, None)


def writer(tokens: int, draft: tuple[int, ...] = (), got: list[int] | None = None) -> Ticket[int]:
    """A job that decodes; ``got`` takes how many logits each step gave."""

    def job(ticket: Ticket[int]) -> Job[int]:
        cache = KvCache(TINY_SHAPE, tokens * (1 + len(draft)))
        for _ in range(tokens):
            logits = yield Decode((cache,), (5,), draft)
            if got is not None:
                got.append(len(logits))
        return tokens

    return Ticket(job, 0, None)


def chunks(runner: LoggingRunner) -> list[int]:
    return [count for kind, count in runner.log if kind == "chunk"]


def test_the_oldest_prompt_gets_every_fourth_chunk(scheduler: Scheduler, runner: LoggingRunner) -> None:
    long = KvCache(TINY_SHAPE, 4000)
    scheduler.round([prompt(4000, long)])
    for _ in range(40):
        scheduler.round([prompt(10), prompt(10)])  # more than a round can serve
        scheduler.take_ended()
    turns = [index for index, cache in enumerate(runner.chunked) if cache is long]
    assert max(np.diff(turns)) == 4
    assert long.length >= 10 * 16


def test_of_several_prompts_the_shortest_is_done_first(scheduler: Scheduler, runner: LoggingRunner) -> None:
    tickets = [prompt(900), prompt(300), prompt(20)]
    scheduler.round(tickets)
    ended: list[Ticket[float]] = []
    while len(ended) < 3:
        ended += scheduler.take_ended()
        scheduler.round()
    assert ended == tickets[::-1]


def test_a_prompt_alone_gets_whole_chunks_and_beside_others_what_step_s_affords(
    scheduler: Scheduler, runner: LoggingRunner
) -> None:
    scheduler.round([prompt(600)])
    scheduler.round()
    assert chunks(runner) == [256, 256]
    scheduler.round([writer(100), prompt(2000)])
    for _ in range(8):
        scheduler.round()
    assert all(96 <= size <= 150 for size in chunks(runner)[4:])
    assert [kind for kind, _ in runner.log[-6:]] == ["batch", "chunk"] * 3


def test_short_prompts_do_not_shorten_the_chunks_of_long_ones(scheduler: Scheduler, runner: LoggingRunner) -> None:
    scheduler.round([writer(1000), prompt(4000)])
    for _ in range(6):
        scheduler.round([prompt(2)])
        scheduler.take_ended()
        scheduler.round()
    assert all(size in (2, 256) or size >= 96 for size in chunks(runner))


def test_chunks_never_fall_below_the_smallest(runner: LoggingRunner) -> None:
    scheduler = Scheduler(runner, EngineSettings(step_s=1e-6), lambda: runner.now)
    scheduler.round([writer(100), prompt(2000)])
    for _ in range(3):
        scheduler.round()
    assert chunks(runner) == [256, 16, 16, 16]


def test_all_that_decode_step_together(scheduler: Scheduler, runner: LoggingRunner) -> None:
    tickets = [writer(2), writer(3), writer(1)]
    scheduler.round(tickets)
    ended: list[list[int]] = []
    for _ in range(3):
        ended += [[tickets.index(ticket) for ticket in scheduler.take_ended()]]
        scheduler.round()
    assert runner.log == [("batch", 3), ("batch", 2), ("batch", 1)]
    assert ended == [[2], [0], [1]]


def test_a_draft_is_checked_only_alone(scheduler: Scheduler, runner: LoggingRunner) -> None:
    drafting: list[int] = []
    scheduler.round([writer(4, draft=(7, 8), got=drafting)])
    scheduler.round([writer(1)])
    scheduler.take_ended()
    scheduler.round()
    assert drafting == [3, 1, 3]
    assert runner.log == [("chunk", 3), ("batch", 2), ("chunk", 3)]


def test_a_failing_chunk_fails_its_job_alone(scheduler: Scheduler, runner: LoggingRunner) -> None:
    decoding, failing = writer(3), prompt(20)
    runner.breaks = "chunk"
    scheduler.round([decoding, failing])
    assert scheduler.take_ended() == [failing]
    failing.settle()
    with pytest.raises(RuntimeError, match="broken"):
        failing.future.result(0)
    assert scheduler.tickets == [decoding]


def test_a_failing_batch_fails_those_that_decode(scheduler: Scheduler, runner: LoggingRunner) -> None:
    decoding, reading = [writer(3), writer(3)], prompt(20)
    runner.breaks = "batch"
    scheduler.round([*decoding, reading])
    assert sorted(map(id, scheduler.take_ended())) == sorted(map(id, [*decoding, reading]))
    reading.settle()
    assert reading.future.result(0) == 1.0


def test_without_memory_for_a_batch_those_that_decode_are_refused(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(size: tuple[int, ...]) -> None:
        raise OverloadedError("no memory", 1.0)

    decoding, later = [writer(3), writer(3)], writer(1)
    with monkeypatch.context() as without:
        without.setattr("guard.engine.decode_batch.Pages", none_left)
        scheduler.round(decoding)
    assert scheduler.take_ended() == decoding
    for ticket in decoding:
        ticket.settle()
        with pytest.raises(OverloadedError):
            ticket.future.result(0)
    scheduler.round([later])
    assert scheduler.take_ended() == [later]
    later.settle()
    assert later.future.result(0) == 1


def test_an_error_of_a_job_is_its_own(scheduler: Scheduler, runner: LoggingRunner) -> None:
    def failing(ticket: Ticket[int]) -> Job[int]:
        yield Decode((KvCache(TINY_SHAPE, 4),), (1,))
        raise ModelOutputError("unreadable")

    ticket, other = Ticket(failing, 0, None), writer(2)
    scheduler.round([ticket, other])
    assert scheduler.take_ended() == [ticket]
    ticket.settle()
    with pytest.raises(ModelOutputError):
        ticket.future.result(0)
    scheduler.round()
    assert scheduler.take_ended() == [other] and scheduler.tickets == []


def test_jobs_that_want_nothing_get_a_turn_every_round(scheduler: Scheduler, runner: LoggingRunner) -> None:
    turns: list[int] = []

    def idling(ticket: Ticket[None]) -> Job[None]:
        for turn in range(3):
            turns.append(turn)
            yield None

    scheduler.round([Ticket(idling, 0, None), writer(9)])
    assert turns == [0]
    scheduler.round()
    assert turns == [0, 1]


def test_a_cache_that_pauses_goes_on_where_it_was(scheduler: Scheduler, runner: LoggingRunner) -> None:
    held: list[list[float]] = []

    def pausing(ticket: Ticket[None]) -> Job[None]:
        cache = KvCache(TINY_SHAPE, 8)
        yield Forward(cache, [1, 2, 3], [2])
        for token in (4, 5):
            yield Decode((cache,), (token,))
            yield None  # it leaves the batch
            held.append(cache.arrays[0][0, 0, : cache.length, 0].tolist())

    scheduler.round([writer(20), Ticket(pausing, 0, None), writer(20)])
    for _ in range(6):
        scheduler.round()
    assert held == [[1, 2, 3, 4], [1, 2, 3, 4, 5]]
