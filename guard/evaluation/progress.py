"""Progress of a long run over rows: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_BAR_CELLS = 20
_SECONDS_BETWEEN = {True: 0.2, False: 60.0}


class RateLine:
    """A ``guard.evaluation.runner.Progress`` with rate and time left, measured on the rows of this run alone."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._clock = clock
        self._began = self._shown = clock()

    def __call__(self, done: int, total: int, resumed: int) -> None:
        now = self._clock()
        first, last = done == resumed, done == total
        if not (first or last) and now - self._shown < _SECONDS_BETWEEN[self._terminal]:
            return
        if first:
            self._began = now
        self._shown = now
        text = self._text(done, total, resumed, now - self._began)
        end = "\n" if last else ""
        self._stream.write(f"\r  {_bar(done, total)}{text:60}{end}" if self._terminal else f"{text}\n")
        self._stream.flush()

    def _text(self, done: int, total: int, resumed: int, seconds: float) -> str:
        text = f"  {done}/{total} rows"
        if done == resumed:
            return f"{text}, {resumed} of them from an earlier run" if resumed else text
        rate = (done - resumed) / max(seconds, 1e-9)
        left = "" if done == total else f", {duration((total - done) / rate)} left"
        return f"{text}, {rate:.1f} a second{left}"


def _bar(done: int, total: int) -> str:
    full = _BAR_CELLS * done // max(1, total)
    return f"[{'#' * full}{'.' * (_BAR_CELLS - full)}]"


def duration(seconds: float) -> str:
    """``"1:02:03"`` or ``"2:03"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
