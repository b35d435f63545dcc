"""Failure test 17: what the watchdog does, by a test's clock. Real processes: tests/contract/test_lifecycle.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guard.engine.settings import EngineSettings
from guard.errors import ModelNotLoadedError, UnavailableError
from server.registry import Registry
from server.watchdog import Watchdog
from tests.contract.fakes import FakeModels
from tests.contract.running import until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    registry = Registry(EngineSettings(), FakeModels(tmp_path))
    await registry.load(Path("a"), "guard")
    yield registry
    await registry.close()


def states(registry: Registry) -> tuple[bool, bool]:
    """Whether it is healthy, and whether it serves."""
    return registry.healthy, registry.serves("guard")


async def crash(registry: Registry) -> None:
    """End the guard's engine, and wait for the one in its place."""
    _, classifier = registry.guard()
    await asyncio.to_thread(classifier.engine.close)
    await until(lambda: registry.serves("guard") and registry.guard()[1] is not classifier, 15)


async def test_restarts_long_ago_are_forgiven(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.watchdog._BACK_OFF_S", (0.0, 0.0, 0.0))
    clock = Clock()
    watching = asyncio.create_task(Watchdog(registry, 60.0, clock).run())
    for _ in range(3):
        await crash(registry)
    clock.now = 601.0
    for _ in range(3):
        await crash(registry)
    assert not watching.done()
    _, classifier = registry.guard()
    await asyncio.to_thread(classifier.engine.close)
    await asyncio.wait_for(watching, 5)  # the fourth within ten minutes
    with pytest.raises(UnavailableError):
        registry.guard()


async def test_a_model_that_is_unloaded_is_not_restarted(registry: Registry) -> None:
    watching = asyncio.create_task(Watchdog(registry, 60.0).run())
    (entry,) = registry.entries()
    down = registry.fail(entry)
    assert registry.listed() == [down]
    assert states(registry) == (False, False)
    await registry.unload(down.name)
    assert not await registry.restart(down)
    await asyncio.sleep(0.3)
    assert registry.listed() == [] and not watching.done()
    assert states(registry) == (True, False)
    with pytest.raises(ModelNotLoadedError):
        registry.guard()
    watching.cancel()


async def test_a_failed_model_can_be_replaced(registry: Registry) -> None:
    (entry,) = registry.entries()
    down = registry.fail(entry)
    new = await registry.load(Path("b"), "guard", replaces=down.name)
    assert registry.guard()[0] is new and new.name == down.name
    assert states(registry) == (True, True)
    assert not await registry.restart(down)
    assert registry.entries() == [new]
