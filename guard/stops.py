"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Releases text as soon as no stop string can begin in it; a match may cross any number of pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def feed(self, piece: str) -> str:
        """Take the next piece; returns the text before the first stop string, or all that can no longer begin one."""
        if self.matched:
            return ""
        self._held += piece
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            self.matched = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = self._possible_start()
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return ready

    def flush(self) -> str:
        """The text still held when the source has ended."""
        ready, self._held = self._held, ""
        return ready

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that is the beginning of a stop string."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
