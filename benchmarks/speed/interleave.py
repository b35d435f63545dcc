"""Engines in turn, round after round: what else the machine does meets all of them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.generation.spread import quantile

Key = TypeVar("Key")


@dataclass(frozen=True)
class Spread:
    """Of ``count`` values: the middle one, and the quarters around it."""

    count: int
    p25: float
    median: float
    p75: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    ordered = sorted(values)
    return Spread(len(ordered), *(quantile(ordered, share) for share in (0.25, 0.5, 0.75)))


def rounds(
    engines: Mapping[Key, Callable[[], float]],
    *,
    most: int,
    least: int,
    budget_s: float,
    warm_up: int = 0,
    pause_s: float = 0.0,
    locks: Sequence[Path] = (),
) -> dict[Key, list[float]]:
    """What each callable returned, in seconds, once a round: ``least`` to ``most`` rounds, each engine leaving early
    when its times add up to ``budget_s``. ``warm_up`` rounds before them are not counted. One that raises LeaveError
    leaves the run, without its values. Each round begins with another engine, and ``pause_s`` pass before each: threads
    of the one before may still be waiting awake. ``locks``: see ``alone``.
    """
    values: dict[Key, list[float]] = {key: [] for key in engines}
    for number in range(most + warm_up):
        going = [key for key, taken in values.items() if len(taken) < least or sum(taken) < budget_s]
        if not going:
            break
        with alone(locks):
            first = number % len(going)
            for key in (*going[first:], *going[:first]):
                time.sleep(pause_s)
                try:
                    seconds = engines[key]()
                except LeaveError:
                    del values[key]
                    continue
                if number >= warm_up:
                    values[key].append(seconds)
    return values


class LeaveError(Exception):
    """This engine takes no further part."""


@contextmanager
def alone(locks: Sequence[Path]) -> Iterator[None]:
    """Holds these files' exclusive locks, taken in order: others who respect them are quiet meanwhile."""
    with ExitStack() as stack:
        for lock in locks:
            file = stack.enter_context(lock.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
