"""Which job gets the next model step. Knows no threads and no clock but the one it is given.

Continuous batching (Yu et al., "Orca", OSDI 2022) with chunked prefill (Agrawal et al., "Sarathi-Serve", OSDI 2024): in
each round all jobs that decode take one step together, then one prompt gets one chunk. Jobs join and leave between
rounds, and the chunk is sized so that those that decode hardly feel it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from guard.engine.cost import SMALLEST_CHUNK, CostModel
from guard.engine.decode_batch import DecodeBatch
from guard.engine.prefill import Prefill
from guard.engine.runner import Runner
from guard.engine.sequence import Decode, Float32, Forward, Request, T, Ticket
from guard.engine.settings import EngineSettings
from guard.engine.stats import Counters

#: Every so many chunks the oldest prompt gets one, however long it is; the others go to the shortest one first.
_OLDEST_EVERY = 4


@dataclass
class _Active:
    """A job that has started, and what it asks for."""

    ticket: Ticket[Any]
    request: Request = None
    prefill: Prefill | None = None  # set while the request is a Forward


class Scheduler:
    """Steps the jobs of one engine. Used from the engine's thread only."""

    def __init__(self, runner: Runner, settings: EngineSettings, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._settings = settings
        self._clock = clock
        self._active: list[_Active] = []
        self.counters = Counters()
        self._batch = DecodeBatch(runner.shape)
        self._chunks = 0
        self.cost = CostModel()

    @property
    def tickets(self) -> list[Ticket[Any]]:
        """Of the jobs that have started and not ended, oldest first."""
        return [active.ticket for active in self._active]

    def round(self, starting: Sequence[Ticket[Any]] = ()) -> None:
        """Start jobs, then one step of every job that decodes, one chunk of one that does not."""
        self._drop_unwanted()
        for active in [active for active in self._ready() if active.request is None]:
            self._advance(active, active.ticket.resume)
        for ticket in starting:
            self._active.append(_Active(ticket))
            self._advance(self._active[-1], ticket.start)
        self._decode()
        self._prefill()

    def take_ended(self) -> list[Ticket[Any]]:
        """The tickets of the jobs that have ended since the last call."""
        ended = [active.ticket for active in self._active if active.ticket.ended]
        if ended:
            self._active = self._waiting()
            self._batch.prune()
            for ticket in ended:
                if ticket.succeeded:
                    self.cost.note_job(ticket.work, ticket.done)
        return ended

    def _drop_unwanted(self) -> None:
        for active in self._waiting():
            if (reason := active.ticket.unwanted()) is not None:
                active.ticket.fail(reason)

    def _advance(self, active: _Active, step: Callable[..., Request], *logits: Float32) -> None:
        active.request = step(*logits)
        active.prefill = Prefill(active.request) if isinstance(active.request, Forward) else None

    def _decode(self) -> None:
        deciders = [active for active in self._ready() if isinstance(active.request, Decode)]
        requests = [active.request for active in deciders if isinstance(active.request, Decode)]
        caches = [cache for request in requests for cache in request.caches]
        if len(caches) == 1 and requests[0].draft:
            self._verify(deciders[0], requests[0])
            return
        if not caches:
            self._batch.prune()
            return
        token_of = {
            id(cache): token
            for request in requests
            for cache, token in zip(request.caches, request.token_ids, strict=True)
        }

        def step() -> Float32:
            self._batch.set(caches)
            return self._runner.decode(self._batch, [token_of[id(cache)] for cache in self._batch.caches])

        began = self._clock()
        logits = self._model(deciders, step)
        if logits is None:
            return
        self._note_decode(deciders, len(caches), began)
        self.counters.decode_tokens += len(caches)
        row_of = {id(cache): row for row, cache in enumerate(self._batch.caches)}
        for active, request in zip(deciders, requests, strict=True):
            active.ticket.done.decoded_tokens += len(request.caches)
            self._advance(active, active.ticket.resume, logits[[row_of[id(cache)] for cache in request.caches]])

    def _verify(self, active: _Active, request: Decode) -> None:
        """All of a draft in one step. With several jobs a step together costs less than one each with a draft."""
        tokens = [*request.token_ids, *request.draft]
        began = self._clock()
        logits = self._model([active], lambda: self._runner.forward(request.caches[0], tokens, range(len(tokens))))
        if logits is not None:
            self._note_decode([active], 1, began)
            self.counters.decode_tokens += len(tokens)
            active.ticket.done.decoded_tokens += 1
            self._advance(active, active.ticket.resume, logits)

    def _prefill(self) -> None:
        prompts = [(active, active.prefill) for active in self._ready() if active.prefill is not None]
        if not prompts:
            return
        self._chunks += 1
        oldest = self._chunks % _OLDEST_EVERY == 0
        active, prefill = prompts[0] if oldest else min(prompts, key=lambda prompt: prompt[1].left)
        size, began = self._chunk(alone=len(self._active) == 1), self._clock()
        tokens = self._model([active], lambda: prefill.step(self._runner, size))
        if tokens is None:
            return
        self.counters.prefill_tokens += tokens
        self.cost.note_prefill(tokens, self._clock() - began)
        active.ticket.done.prompt_tokens += tokens
        if prefill.left == 0:
            self._advance(active, active.ticket.resume, prefill.logits(self._runner))

    def _model(self, jobs: list[_Active], step: Callable[[], T]) -> T | None:
        """Run a model step of ``jobs``; None when it failed, and they with it."""
        self.counters.steps += 1
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - onnxruntime raises bare exceptions; these jobs', not the engine's
            self.counters.failed_steps += 1
            for active in jobs:
                active.ticket.fail(error)
            return None

    def _chunk(self, alone: bool) -> int:
        """How many tokens to compute now: as many as fit into ``step_s`` when others wait for their turn."""
        size = self._settings.prefill_chunk
        if alone or self.cost.token_s == 0:
            return size
        affordable = int(self._settings.step_s / self.cost.token_s) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return min(size, max(SMALLEST_CHUNK, affordable))

    def _note_decode(self, jobs: list[_Active], rows: int, began: float) -> None:
        self.counters.batches.add(rows)
        self.cost.note_decode(rows, self._clock() - began)
        for active in jobs:
            active.ticket.done.steps += 1

    def _waiting(self) -> list[_Active]:
        return [active for active in self._active if not active.ticket.ended]

    def _ready(self) -> list[_Active]:
        return [active for active in self._waiting() if not active.ticket.paused]
