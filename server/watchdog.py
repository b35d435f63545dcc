"""Looks after the engines: one whose thread died is restarted in place, one that hangs ends the process.

A thread that hangs cannot be stopped, and neither can the one of Python itself when native code keeps the interpreter's
lock. So the last word has a timer of the C library's that needs neither (``faulthandler``): whatever hangs, the process
ends, and its supervisor starts it anew.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

from guard.errors import GuardError
from server import log
from server.entries import Down, Entry, State
from server.registry import Registry

_LOOK_S = 0.25
#: Before the first restart, the second and so on of one model; as many are made within _WITHIN_S, then it is given up.
_BACK_OFF_S = (0.0, 1.0, 5.0)
_WITHIN_S = 600.0
#: What the event loop may take longer than an engine's step before the process is ended.
_SLACK_S = 10.0
_REARM_S = 5.0


class Watchdog:
    """Watches the engines of ``registry``. A step that takes longer than ``step_timeout_s`` seconds is a hang."""

    def __init__(self, registry: Registry, step_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._step_timeout_s = step_timeout_s
        self._clock = clock
        self._restarts: defaultdict[str, deque[float]] = defaultdict(deque)
        self._reviving: set[asyncio.Task[bool]] = set()

    async def run(self) -> None:
        """Returns when the process has to end: an engine hangs, or died too often. Its requests have been told."""
        try:
            while not self._find_hanging():
                for entry in self._dead():
                    log.event(logging.ERROR, "engine_died", model=entry.name, error=entry.model.engine.failure)
                    self._reviving.add(asyncio.create_task(self._revive(self._registry.fail(entry))))
                done = {task for task in self._reviving if task.done()}
                self._reviving -= done
                if not all(task.result() for task in done):
                    return
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._reviving:
                task.cancel()

    def _dead(self) -> list[Entry]:
        serving = [entry for entry in self._registry.entries() if entry.state is State.READY]
        return [entry for entry in serving if not entry.model.engine.alive]

    def _find_hanging(self) -> bool:
        """Whether an engine hangs. What it was asked ends with UnavailableError, and it is asked no more."""
        found = False
        for entry in self._registry.in_memory():
            engine = entry.model.engine
            began = engine.round_began
            if began is not None and self._clock() - began > self._step_timeout_s:
                log.event(logging.ERROR, "engine_hangs", model=entry.name, limit_s=self._step_timeout_s)
                engine.abandon()
                found = True
        return found

    async def _revive(self, down: Down) -> bool:
        """Load ``down`` anew, after a while when that was tried before; False when it was tried too often."""
        restarts = self._restarts[down.name]
        while True:
            while restarts and restarts[0] < self._clock() - _WITHIN_S:
                restarts.popleft()
            if len(restarts) == len(_BACK_OFF_S):
                log.event(logging.ERROR, "engine_given_up", model=down.name, restarts=len(restarts), within_s=_WITHIN_S)
                return False
            await asyncio.sleep(_BACK_OFF_S[len(restarts)])
            restarts.append(self._clock())
            try:
                if await self._registry.restart(down):
                    log.event(logging.WARNING, "engine_restarted", model=down.name, restarts=len(restarts))
                return True
            except GuardError as error:
                log.event(logging.ERROR, "restart_failed", model=down.name, message=str(error))
            except Exception as error:  # noqa: BLE001 - whatever went wrong, it is tried again, and then given up
                log.event(logging.ERROR, "restart_failed", model=down.name, error=error)


class DeadMan:
    """Ends the process with status 1, and a traceback without any values, unless it is told again in time.

    One for a process.
    """

    def __init__(self, step_timeout_s: float) -> None:
        self._limit_s = step_timeout_s + _SLACK_S

    async def feed(self) -> None:
        """Tell it again and again that the event loop runs, until cancelled."""
        while True:
            self.leave_within(self._limit_s)
            await asyncio.sleep(_REARM_S)

    def leave_within(self, seconds: float) -> None:
        """End the process after ``seconds``, unless told otherwise."""
        faulthandler.dump_traceback_later(seconds, exit=True)

    def rest(self) -> None:
        """Nothing needs watching any more."""
        faulthandler.cancel_dump_traceback_later()


def leave(status: int) -> int:
    """Return ``status`` for the process to end with; but end it here, at once, when an engine's thread still runs:
    native code that hangs could hold up Python's end for good.
    """
    if any(thread.name.startswith("engine-") for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status
