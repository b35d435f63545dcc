"""The jobs that wait for an engine: bounded in number and tokens, and fair to those who sent them.

Each caller's jobs keep their order; among callers, the one who has been given least goes next, counted in tokens. That
is start-time fair queuing (Goyal, Vin, Cheng, SIGCOMM 1996): while two callers wait, what they were given differs by at
most one job of each, however many jobs they send. Room is shared by a dynamic threshold (Choudhury, Hahne, IEEE/ACM
Transactions on Networking 1998), so that one caller alone never fills it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from guard.engine.sequence import Ticket

#: A caller may hold this many places for each one that is left: alone 4/5 of all, two callers 4/9 each.
PLACES_FOR_EACH_FREE = 4


def has_share(held: int, wanted: int, free: int) -> bool:
    """Whether a caller who holds ``held`` places may have ``wanted`` more while ``free`` are left for everybody."""
    return held + wanted <= PLACES_FOR_EACH_FREE * (free - wanted)


@dataclass
class _Lane:
    """The jobs of one caller. ``given`` is the virtual time at which the first of them is due."""

    given: float
    jobs: deque[tuple[int, Ticket[Any]]] = field(default_factory=deque)
    tokens: int = 0


class FairQueue:
    """Not thread-safe: the engine holds its lock. Callers are known by ``Ticket.caller``; "" is nobody in particular,
    whose share is not limited.
    """

    def __init__(self, max_jobs: int, max_tokens: int) -> None:
        self._max_jobs = max_jobs
        self._max_tokens = max_tokens
        self._lanes: dict[str, _Lane] = {}
        self._now = 0.0  # virtual time: tokens that each of the waiting callers has been given
        self._jobs = self._tokens = 0
        self._numbers = count()

    def __len__(self) -> int:
        return self._jobs

    @property
    def tokens(self) -> int:
        """Of all jobs that wait."""
        return self._tokens

    def has_room(self, ticket: Ticket[Any]) -> bool:
        """Whether ``ticket`` may wait. One job may be larger than the limit of tokens, if no other waits."""
        if self._jobs >= self._max_jobs:
            return False
        tokens = ticket.work.tokens
        if self._jobs and self._tokens + tokens > self._max_tokens:
            return False
        lane = self._lanes.get(ticket.caller)
        if not ticket.caller or lane is None or not lane.jobs:
            return True
        return has_share(len(lane.jobs), 1, self._max_jobs - self._jobs) and has_share(
            lane.tokens, tokens, self._max_tokens - self._tokens
        )

    def add(self, ticket: Ticket[Any]) -> None:
        """Let it wait, room or not."""
        lane = self._lanes.setdefault(ticket.caller, _Lane(self._now))
        if not lane.jobs:
            lane.given = max(lane.given, self._now)  # a caller who asked for nothing has saved up nothing
        lane.jobs.append((next(self._numbers), ticket))
        self._count(lane, ticket, 1)

    def in_order(self) -> list[Ticket[Any]]:
        """All that wait, the next one first."""
        return [ticket for _, _, ticket in sorted(self._due(), key=lambda due: due[:2])]

    def ahead_of(self, caller: str) -> list[Ticket[Any]]:
        """Those that would be served before a job that ``caller`` sends now."""
        lane = self._lanes.get(caller)
        own = max(self._now, lane.given) if lane else self._now
        own += sum(_cost(ticket) for _, ticket in lane.jobs) if lane else 0
        return [ticket for due, _, ticket in self._due() if due <= own]

    def take(self, ticket: Ticket[Any]) -> None:
        """``ticket`` is served now."""
        lane = self._lanes[ticket.caller]
        self._now = max(self._now, lane.given)
        lane.given += _cost(ticket)
        self.remove([ticket])

    def remove(self, tickets: Iterable[Ticket[Any]]) -> None:
        """They leave without having been served."""
        gone = {id(ticket) for ticket in tickets}
        for caller, lane in list(self._lanes.items()):
            for _, ticket in [each for each in lane.jobs if id(each[1]) in gone]:
                self._count(lane, ticket, -1)
            lane.jobs = deque(each for each in lane.jobs if id(each[1]) not in gone)
            if not lane.jobs and lane.given <= self._now:
                del self._lanes[caller]

    def _due(self) -> Iterator[tuple[float, int, Ticket[Any]]]:
        """When each is due in virtual time, then the order of arrival."""
        for lane in self._lanes.values():
            due = lane.given
            for number, ticket in lane.jobs:
                yield due, number, ticket
                due += _cost(ticket)

    def _count(self, lane: _Lane, ticket: Ticket[Any], sign: int) -> None:
        lane.tokens += sign * ticket.work.tokens
        self._tokens += sign * ticket.work.tokens
        self._jobs += sign


def _cost(ticket: Ticket[Any]) -> int:
    return max(1, ticket.work.tokens)
