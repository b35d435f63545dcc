"""Stopping without dropping anybody: NOT_SERVING, keep accepting for a while, finish what is in flight, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Sequence
from typing import Protocol

from server import log
from server.health import Health


class StopRequest:
    """Set by SIGTERM (an orchestrator: with the drain delay) or SIGINT (a person: without). A second one hurries."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()
        #: Whether the drain delay is wanted.
        self.patient = True

    def install(self) -> None:
        """Handle the signals of this process; main thread only."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.ask)
        loop.add_signal_handler(signal.SIGINT, self.ask, False)

    def ask(self, patient: bool = True) -> None:
        """Ask for a stop; the second time, to hurry."""
        if self._asked.is_set():
            self._hurried.set()
        self.patient = patient
        self._asked.set()

    async def wait(self) -> None:
        """Until a stop is asked for."""
        await self._asked.wait()

    async def pause(self, seconds: float) -> None:
        """The drain delay: until ``seconds`` have passed, or somebody is in a hurry."""
        try:
            async with asyncio.timeout(seconds):
                await self._hurried.wait()
        except TimeoutError:
            pass

    async def wait_hurried(self) -> None:
        """Until somebody is in a hurry."""
        await self._hurried.wait()


class Stoppable(Protocol):
    """A server."""

    def stop(self, grace: float, /) -> Awaitable[None]:
        """Take no more calls; those in flight have ``grace`` seconds to finish. May be called again, to hurry."""


async def drain(
    servers: Sequence[Stoppable], health: Health, stop: StopRequest, delay_s: float, grace_s: float
) -> None:
    """Stop ``servers``. Calls in flight have ``grace_s`` seconds to finish, none when somebody is in a hurry."""
    health.shut_down()
    delay_s = delay_s if stop.patient else 0.0
    log.event(logging.INFO, "draining", delay_s=delay_s, grace_s=grace_s)
    await stop.pause(delay_s)
    health.end_watches()
    stopping = asyncio.create_task(_stop(servers, grace_s))
    hurried = asyncio.create_task(stop.wait_hurried())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if hurried.done():
        await _stop(servers, 0.0)
    hurried.cancel()
    await stopping


async def _stop(servers: Sequence[Stoppable], grace_s: float) -> None:
    await asyncio.gather(*(server.stop(grace_s) for server in servers))
