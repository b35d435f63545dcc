"""A simulated day of one engine: its clock, its model, its callers and their whims, all from one seed.

Everything that happens after the first request happens on the engine's thread: time passes in model steps only, and
callers come, leave and lose patience while a step runs. So a seed gives the same day every time.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise

from guard.bundle import Bundle
from guard.engine.engine import Engine
from guard.engine.sampler import SamplingParams
from guard.engine.sequence import Ticket
from guard.engine.settings import EngineSettings
from guard.errors import CancelledError, DeadlineError, InvalidInputError, ModelOutputError, OverloadedError
from guard.generation import Delta, GenerateTask, Generation
from guard.generator import Generator

from .simulated_model import SHAPE, Clock, Costs, Model, RunnerError, SimulatedRunner

LONGEST_PROMPT = 3000
WAIT = 60.0
_LETTERS = "abc"  # few, so that prompt lookup often finds something to propose
_CHUNK_FLOOR = 16  # tokens that a chunk has even when step_s affords fewer
_LONGEST_STEP = 17  # tokens of a draft with the one before it


@dataclass
class Caller:
    """One request, what its caller does to it, and what came of it."""

    task: GenerateTask
    arrives: float
    patience: float | None  # seconds from arrival to its deadline
    leaves: float | None  # seconds from arrival
    hangs_up: bool  # leaves as asyncio does, by cancelling the future
    left: float | None = None
    ticket: Ticket[Generation] | None = None
    refused: Exception | None = None
    deltas: list[tuple[float, Delta]] = field(default_factory=list)
    answers: int = 0
    answered: float = 0.0

    @property
    def late(self) -> float:
        return float("inf") if self.patience is None else self.arrives + self.patience


class Day:
    """Runs the engine for a day and collects in ``complaints`` whatever is not as it should be."""

    def __init__(self, seed: int, bundle: Bundle, letters: Sequence[int], clock: Clock) -> None:
        self.complaints: list[str] = []
        chance = random.Random(seed)
        self._clock = clock
        self._costs = Costs(
            step_s=chance.choice([0.0, 0.005, 0.02]),
            token_s=chance.choice([0.0002, 0.001, 0.01]),
            failures=chance.choice([0.0, 0.0, 0.01, 0.05]),
            nans=chance.choice([0.0, 0.0, 0.02]),
        )
        budget = chance.choice([3200, 6000, 20_000]) * SHAPE.kv_bytes_per_token
        self._settings = EngineSettings(
            max_queued=chance.choice([3, 64]),
            max_active=chance.choice([1, 2, 8]),
            kv_bytes=budget,
            prefix_bytes=chance.choice([0, 100, 4000]) * SHAPE.kv_bytes_per_token,
            prefill_chunk=chance.choice([16, 64, 256]),
            step_s=chance.choice([0.01, 0.05, 0.15]),
        )
        self._model = Model(seed, letters)
        self._letters = letters
        self.runner = SimulatedRunner(self._model, self._costs, clock, chance)
        self.runner.after_step = self._after_step
        self.engine = Engine(self.runner, self._settings, f"seed-{seed}")
        self._generator = Generator(bundle, self.runner, self.engine)
        self.callers = _callers(chance, clock.now)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        for caller in self.callers:
            self._at(caller.arrives, partial(self._arrive, caller))

    def run(self) -> None:
        """Let everything happen, then close."""
        try:
            while True:
                self._wait_until_idle()
                if not self._events:
                    break
                self._clock.now = max(self._clock.now, self._events[0][0])
                heapq.heappop(self._events)[2]()
            self._check_idle()
        finally:
            self._generator.close()
        for number, caller in enumerate(self.callers):
            for complaint in self._judge(caller):
                self.complaints.append(f"request {number}: {complaint}")
        self._check_failures()
        self._check_order()

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def _after_step(self) -> None:
        """On the engine's thread, while a model step runs."""
        while self._events and self._events[0][0] <= self._clock.now:
            heapq.heappop(self._events)[2]()
        living = sum(cache.capacity for cache in self.runner.caches if not cache.freed)
        if living * SHAPE.kv_bytes_per_token > self._settings.kv_bytes:
            self.complaints.append(f"KV caches of {living} tokens are more than the budget")

    def _arrive(self, caller: Caller) -> None:
        deadline = None if caller.patience is None else caller.late
        try:
            ticket = self._generator.submit(
                caller.task, lambda delta: caller.deltas.append((self._clock.now, delta)), deadline
            )
        except (InvalidInputError, OverloadedError, DeadlineError) as refusal:
            caller.refused = refusal
            return
        caller.ticket = ticket
        ticket.future.add_done_callback(lambda future: self._answer(caller))
        if caller.leaves is not None:
            self._at(caller.arrives + caller.leaves, partial(self._leave, caller))

    def _leave(self, caller: Caller) -> None:
        assert caller.ticket is not None
        if not caller.ticket.future.done():
            caller.left = self._clock.now
            caller.ticket.cancel()
            if caller.hangs_up:
                caller.ticket.future.cancel()

    def _answer(self, caller: Caller) -> None:
        """When a future is settled, what its job held has been given back; one that was cancelled says nothing."""
        caller.answers += 1
        caller.answered = self._clock.now
        tickets = [other.ticket for other in self.callers if other.ticket is not None]
        holders = [ticket for ticket in tickets if ticket.future.cancelled() or not ticket.future.done()]
        if self.engine.kv_bytes_in_use > sum(ticket.kv_bytes for ticket in holders):
            self.complaints.append("a caller was told before the memory was given back")

    def _wait_until_idle(self) -> None:
        until = time.monotonic() + WAIT
        while self.engine.jobs or any(caller.ticket and not caller.ticket.future.done() for caller in self.callers):
            if time.monotonic() > until or not self.engine.alive:
                raise AssertionError("a request was lost")
            time.sleep(0.0002)

    def _check_idle(self) -> None:
        if self.engine.kv_bytes_in_use:
            self.complaints.append(f"{self.engine.kv_bytes_in_use} bytes of KV cache are reserved at the end")
        if self.engine._scheduler._batch.caches:
            self.complaints.append("the decode batch is not empty at the end")
        if any(not cache.freed for cache in self.runner.caches):
            self.complaints.append("a KV cache was not freed")

    def _judge(self, caller: Caller) -> list[str]:
        if caller.ticket is None:
            return [] if caller.refused is not None else ["never arrived"]
        if caller.answers != 1:
            return [f"was answered {caller.answers} times"]
        round_s = self._round_s()
        late = round_s + self._costs.step_s + (self._settings.prefill_chunk + 1) * self._costs.token_s
        if caller.left is not None and caller.answered > caller.left + late:
            return [f"was told {caller.answered - caller.left:.3f} s after its caller left, {late:.3f} s is the most"]
        if caller.answered > caller.late + late:
            return [f"was told {caller.answered - caller.late:.3f} s after its deadline, {late:.3f} s is the most"]
        gaps = self._gaps(caller)
        if gaps and max(gaps) > round_s + 1e-9:
            return [f"waited {max(gaps):.3f} s between two tokens, {round_s:.3f} s is a round"]
        future: Future[Generation] = caller.ticket.future
        if future.cancelled():
            return [] if caller.hangs_up and caller.left is not None else ["was cancelled by nobody"]
        return self._judge_error(caller, future.exception()) or self._judge_text(caller, future)

    def _judge_error(self, caller: Caller, error: BaseException | None) -> list[str]:
        if isinstance(error, CancelledError) and caller.left is None:
            return ["was cancelled by nobody"]
        if isinstance(error, DeadlineError) and caller.answered < caller.late:
            return ["was late before its deadline"]
        expected = (CancelledError, DeadlineError, RunnerError, ModelOutputError, type(None))
        return [] if isinstance(error, expected) else [f"failed with {error!r}"]

    def _judge_text(self, caller: Caller, future: Future[Generation]) -> list[str]:
        texts = self._texts(caller.task)
        done = future.exception() is None
        for index, text in enumerate(texts):
            streamed = "".join(delta.text for _, delta in caller.deltas if delta.choice == index)
            if not (streamed == text if done else text.startswith(streamed)):
                return [f"choice {index} streamed {streamed!r}, alone it is {text!r}"]
        if done and [choice.text for choice in future.result().choices] != texts:
            return ["the result is not what was streamed"]
        return []

    def _texts(self, task: GenerateTask) -> list[str]:
        letter = dict(zip(self._letters, _LETTERS, strict=True))
        token = {text: token for token, text in letter.items()}
        prompt = [token[character] for character in task.prompt or ""]
        texts = []
        for index in range(task.choices):
            seed = task.sampling.seed
            sampling = task.sampling if seed is None else replace(task.sampling, seed=seed + index)
            texts.append("".join(letter[each] for each in self._model.write(prompt, task.max_tokens, sampling)))
        return texts

    def _gaps(self, caller: Caller) -> list[float]:
        gaps: list[float] = []
        for choice in range(caller.task.choices):
            times = [when for when, delta in caller.deltas if delta.choice == choice]
            gaps += [later - earlier for earlier, later in pairwise(times)]
        return gaps

    def _round_s(self) -> float:
        """The longest that a round can take once others are active: a step of all that decode, and a chunk."""
        costs, rows = self._costs, 4 * self._settings.max_active
        decode = costs.step_s + max(rows, _LONGEST_STEP) * costs.token_s
        affordable = max(self._settings.step_s, _CHUNK_FLOOR * costs.token_s)
        return decode + costs.step_s + affordable + costs.token_s

    def _check_failures(self) -> None:
        """A failed chunk fails its job, a failed batch its jobs, a NaN its job; and nothing else."""
        errors = [
            caller.ticket.future.exception()
            for caller in self.callers
            if caller.ticket is not None and not caller.ticket.future.cancelled()
        ]
        broken = sum(isinstance(error, RunnerError) for error in errors)
        batches = self.runner.broken_rows
        if not self.runner.broken_forwards + len(batches) <= broken <= self.runner.broken_forwards + sum(batches):
            self.complaints.append(f"{broken} requests failed with the model")
        unreadable = sum(isinstance(error, ModelOutputError) for error in errors)
        if not (unreadable <= self.runner.nan_rows and bool(unreadable) == bool(self.runner.nan_rows)):
            self.complaints.append(f"{unreadable} requests failed for {self.runner.nan_rows} NaN rows")

    def _check_order(self) -> None:
        started = [
            caller.ticket.started
            for caller in self.callers
            if caller.ticket is not None and caller.ticket.started is not None
        ]
        if started != sorted(started):
            self.complaints.append("a request overtook an earlier one")


def _callers(chance: random.Random, now: float) -> list[Caller]:
    base = "".join(chance.choices(_LETTERS, k=LONGEST_PROMPT))
    pause = chance.choice([0.0, 0.02, 0.3, 3.0])
    callers = []
    for _ in range(chance.randint(4, 14)):
        now += chance.expovariate(1 / pause) if pause else 0.0
        length = int(LONGEST_PROMPT ** chance.random())
        shared = min(length, chance.choice([0, 0, 40, 300, LONGEST_PROMPT]))
        task = GenerateTask(
            prompt=base[:shared] + "".join(chance.choices(_LETTERS, k=length - shared)),
            max_tokens=chance.randint(1, 40),
            choices=chance.choice([1, 1, 2, 4]),
            sampling=SamplingParams(temperature=chance.choice([0.0, 1.0]), seed=chance.randrange(1 << 32)),
            prompt_lookup=chance.random() < 0.7,
        )
        impatient, fickle = chance.random() < 0.15, chance.random() < 0.2
        callers.append(
            Caller(
                task,
                arrives=now,
                patience=chance.expovariate(1.0) if impatient else None,
                leaves=chance.expovariate(2.0) if fickle else None,
                hangs_up=chance.random() < 0.5,
            )
        )
    return callers
