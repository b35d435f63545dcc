from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from guard.bundle.manifest import Task
from guard.engine.settings import EngineSettings
from guard.errors import BundleError, InvalidInputError, ModelNotLoadedError, UnavailableError
from server.registry import Model, Registry, State
from tests.contract.fakes import FakeModels
from tests.contract.running import until


async def test_one_checkpoint_as_guard_and_as_instruct_has_two_names(tmp_path: Path) -> None:
    fakes = FakeModels(tmp_path)

    def named_alike(directory: Path, task: Task, settings: EngineSettings) -> Model:
        model = fakes(directory, task, settings)
        model.bundle = replace(model.bundle, manifest=replace(model.bundle.manifest, name="same"))
        return model

    registry = Registry(EngineSettings(), named_alike)
    await registry.load(Path("a"), "guard")
    await registry.load(Path("b"), "instruct")
    assert [entry.name for entry in registry.entries()] == ["same", "same-instruct"]
    assert registry.instruct()[0] is registry.instruct("same-instruct")[0]
    with pytest.raises(ModelNotLoadedError):
        registry.instruct("same")
    with pytest.raises(InvalidInputError, match="loaded already"):
        await registry.load(Path("c"), "guard")
    await registry.close()


async def test_states_while_loading(tmp_path: Path) -> None:
    fakes, free, changes = FakeModels(tmp_path), threading.Event(), []

    def waits(directory: Path, task: Task, settings: EngineSettings) -> Model:
        assert free.wait(5)
        return fakes(directory, task, settings)

    registry = Registry(EngineSettings(), waits)
    registry.on_change = lambda: changes.append(registry.serves("guard"))
    loading = registry.load(Path("a"), "guard")
    assert not registry.serves("guard")
    with pytest.raises(UnavailableError, match="not ready"):
        registry.guard()
    with pytest.raises(ModelNotLoadedError):
        registry.instruct()
    free.set()
    assert (await loading).state is State.READY
    assert changes == [True]
    await registry.close()
    assert registry.entries() == []


async def test_a_load_outlives_its_caller(tmp_path: Path) -> None:
    fakes, free = FakeModels(tmp_path), threading.Event()

    def waits(directory: Path, task: Task, settings: EngineSettings) -> Model:
        assert free.wait(5)
        return fakes(directory, task, settings)

    registry = Registry(EngineSettings(), waits)

    async def caller() -> None:
        await registry.load(Path("a"), "guard")

    left = asyncio.ensure_future(caller())
    await asyncio.sleep(0.01)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    free.set()
    await until(lambda: registry.serves("guard"))
    _, classifier = registry.guard()
    await registry.close()
    assert not classifier.engine.alive


async def test_a_failed_load_leaves_nothing(tmp_path: Path) -> None:
    registry = Registry(EngineSettings(), FakeModels(tmp_path, fail=True))
    with pytest.raises(BundleError):
        await registry.load(Path("a"), "guard")
    assert registry.listed() == []
    with pytest.raises(ModelNotLoadedError):
        registry.guard()
