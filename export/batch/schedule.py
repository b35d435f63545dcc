"""Which exports run at once, within a bound of memory."""

from __future__ import annotations

from collections.abc import Mapping


class Schedule:
    """Starts what fits, in the order given; one that has to wait is overtaken by later ones that fit.

    ``needs``: bytes by name, each at most ``limit``; None is no limit. ``parallel``: how many may run at once.
    """

    def __init__(self, needs: Mapping[str, int], limit: int | None, parallel: int) -> None:
        self._waiting = dict(needs)
        self._running: dict[str, int] = {}
        self._limit = limit
        self._parallel = parallel

    @property
    def waiting(self) -> tuple[str, ...]:
        """What has not been started."""
        return tuple(self._waiting)

    def start(self) -> str | None:
        """The next to start now, if there is one; it counts as running until ``done``."""
        if len(self._running) >= self._parallel:
            return None
        used = sum(self._running.values())
        for name, need in self._waiting.items():
            if self._limit is None or used + need <= self._limit:
                self._running[name] = self._waiting.pop(name)
                return name
        return None

    def done(self, name: str) -> None:
        """``name`` has ended."""
        del self._running[name]
