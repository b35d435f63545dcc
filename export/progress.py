"""Progress of a long command: a line that counts up on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO


class ProgressLines:
    """``show(step, fraction)`` as the work goes on; use it as a context manager, so that a failure ends its line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._step: str | None = None
        self._started = 0.0

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end("" if error is None else "failed")

    def show(self, step: str, fraction: float) -> None:
        """The running ``step`` is done to ``fraction`` (0..1). A new name starts a new line."""
        if step != self._step:
            self._end("")
            self._step, self._started = step, time.monotonic()
            self._stream.write(f"  {step} ...")
        if fraction >= 1.0:
            self._end(f"{time.monotonic() - self._started:.1f} s")
        elif self._terminal and fraction > 0.0:
            self._stream.write(f"\r  {step} ... {fraction:4.0%}")
        self._stream.flush()

    def _end(self, result: str) -> None:
        if self._step is not None:
            clear = f"\r  {self._step} ... " if self._terminal else " "
            self._stream.write(f"{clear}{result}\n" if result else "\n")
            self._step = None
