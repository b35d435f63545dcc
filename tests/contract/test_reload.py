"""Models that are replaced while they serve, and versions side by side."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from guard.bundle.manifest import Manifest, Task
from guard.engine.settings import EngineSettings
from guard.errors import MemoryPlanError
from guard.v1.generation_pb2 import GenerateRequest, ModerationOptions
from guard.v1.model_pb2 import GetModelRequest, ListModelsRequest, LoadModelRequest, UnloadModelRequest
from guard.v1.moderation_pb2 import (
    TARGET_RESPONSE,
    VERDICT_SAFE,
    VERDICT_UNSAFE,
    StreamClassifyRequest,
    StreamClassifyStart,
)
from server.registry import Loader, Model
from tests.unit.guard.builders import write_bundle

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import Running, message, question, refused, running, until


class Versions:
    """A loader that remembers the models it made, the oldest first."""

    def __init__(self, models: FakeModels) -> None:
        self.made: list[Model] = []
        self._models = models

    def __call__(self, directory: Path, task: Task, settings: EngineSettings) -> Model:
        self.made.append(self._models(directory, task, settings))
        return self.made[-1]

    @property
    def alive(self) -> list[bool]:
        """Of each model's engine."""
        return [model.engine.alive for model in self.made]


@dataclass
class Traffic:
    """Clients that ask without a pause, with and without a model's name. Any error or wrong answer fails the test."""

    server: Running
    answers: int = 0
    stopped: bool = False

    async def client(self, number: int) -> None:
        while not self.stopped:
            unsafe = self.answers % 2
            asked = question(f"text {number} {UNSAFE_MARK if unsafe else ''}", model="tiny-guard" if number % 2 else "")
            answer = await self.server.moderation.Classify(asked, timeout=30)
            assert answer.verdict == (VERDICT_UNSAFE if unsafe else VERDICT_SAFE)
            assert answer.model == "tiny-guard"
            self.answers += 1

    async def goes_on(self, answers: int = 30) -> None:
        """Wait for so many answers more."""
        wanted = self.answers + answers
        await until(lambda: self.answers >= wanted, 30)


@asynccontextmanager
async def traffic(server: Running) -> AsyncIterator[Traffic]:
    this = Traffic(server)
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(this.client(number))
        yield this
        this.stopped = True


@asynccontextmanager
async def reloadable(loader: Loader, root: Path, **settings: Any) -> AsyncIterator[Running]:
    """A server with both models and a guard bundle "next" in its model directory."""
    (root / "served").mkdir()
    write_bundle(root / "served" / "next", "guard")
    async with running(loader, admin=True, model_directory=root / "served", **settings) as server:
        yield server


async def test_a_switch_shows_in_no_answer(models: FakeModels, tmp_path: Path) -> None:
    """Three switches under load: no error, no gap in health, and the old models are freed after their requests."""
    models.step_seconds = 0.002
    versions = Versions(models)
    async with reloadable(versions, tmp_path, instruct=None) as server, traffic(server) as clients:
        watch = server.health.Watch(health_pb2.HealthCheckRequest(service="guard.v1.ModerationService"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        told = asyncio.ensure_future(watch.read())
        for switch in range(1, 4):
            await clients.goes_on()
            loaded = await server.models.LoadModel(LoadModelRequest(bundle="next", replace="tiny-guard"))
            assert (loaded.model.name, loaded.model.is_default) == ("tiny-guard", True)
            assert server.app.registry.guard()[1] is versions.made[switch]
            await clients.goes_on()
            await until(lambda: versions.alive == [False] * (len(versions.made) - 1) + [True])
        listed = await server.models.ListModels(ListModelsRequest())
        assert [model.name for model in listed.models] == ["tiny-guard"]
        assert not told.done()
        watch.cancel()
    assert len(versions.made) == 4


async def test_nothing_holds_on_to_what_was_replaced(models: FakeModels, tmp_path: Path) -> None:
    """Traffic of every kind, errors and cancelled calls among it, during three switches: neither a model nor its graph
    nor its engine outlives its requests.
    """
    models.step_seconds = 0.002
    versions, parts = Versions(models), list[weakref.ref[object]]()

    def remembered(directory: Path, task: Task, settings: EngineSettings) -> Model:
        model = versions(directory, task, settings)
        parts.extend(weakref.ref(part) for part in (model, models.runners[task], model.engine))
        return model

    async with reloadable(remembered, tmp_path, instruct=None) as server, traffic(server) as clients:
        for _ in range(3):
            calls = [server.moderation.Classify(question(f"{number} {BROKEN_MARK}"), timeout=9) for number in range(4)]
            left = [server.moderation.Classify(question("x" * 400), timeout=9) for _ in range(4)]
            stream = server.moderation.StreamClassify(timeout=9)
            start = StreamClassifyStart(check_every_tokens=8, target=TARGET_RESPONSE)
            await stream.write(StreamClassifyRequest(start=start))
            await stream.write(StreamClassifyRequest(text="one two three four five six seven "))
            await clients.goes_on(10)
            for call in left:
                call.cancel()
            await server.models.LoadModel(LoadModelRequest(bundle="next", replace="tiny-guard"))
            await stream.done_writing()
            assert [answer async for answer in stream][-1].HasField("result")
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(answer, grpc.aio.AioRpcError)
            await clients.goes_on(10)
        models.runners.clear()
        versions.made.clear()
        await until(lambda: [part() is None for part in parts] == [True] * 9 + [False] * 3)


async def test_streams_under_way_keep_their_model(models: FakeModels, tmp_path: Path) -> None:
    models.step_seconds = 0.005
    versions = Versions(models)
    async with reloadable(versions, tmp_path) as server:
        ask = GenerateRequest(messages=[message("x")], max_tokens=150, temperature=0.0, moderation=ModerationOptions())
        ask.moderation.check_output = True
        writing = asyncio.ensure_future(server.generation.Generate(ask))
        stream = server.moderation.StreamClassify()
        await stream.write(
            StreamClassifyRequest(start=StreamClassifyStart(check_every_tokens=8, target=TARGET_RESPONSE))
        )
        await stream.write(StreamClassifyRequest(text="one two three four five six seven "))
        assert (await stream.read()).progress.judged_bytes
        old, guard = versions.made[0], server.app.registry.guard()[0]
        assert guard.users.count == 2
        await server.models.LoadModel(LoadModelRequest(bundle="next", replace="tiny-guard"))
        judged = await server.moderation.Classify(question(UNSAFE_MARK))
        assert judged.verdict == VERDICT_UNSAFE
        await asyncio.sleep(0.2)
        assert old.engine.alive and guard.users.count == 2
        await stream.write(StreamClassifyRequest(text=f"and {UNSAFE_MARK} then"))
        await stream.done_writing()
        while not (last := await stream.read()).HasField("result"):
            pass
        assert last.result.verdict == VERDICT_UNSAFE
        answer = await writing
        assert answer.usage.completion_tokens == 150
        await until(lambda: not old.engine.alive)
        assert versions.made[-1].engine.alive and guard.users.count == 0
        assert old.engine.kv_bytes_in_use == 0


async def test_what_is_refused_changes_nothing(models: FakeModels, tmp_path: Path) -> None:
    """Whatever stops a switch midway: the call says what, the old model goes on, and what was loaded is freed."""
    models.step_seconds = 0.002
    versions = Versions(models)

    def no_room(manifests: Sequence[Manifest], directory: Path) -> None:
        assert len(manifests) == 1
        raise MemoryPlanError("900 MiB are needed and 512 MiB are there")

    async with reloadable(versions, tmp_path, instruct=None) as server, traffic(server) as clients:
        again = LoadModelRequest(bundle="next", replace="tiny-guard")
        models.fail = True
        answer = await refused(server.models.LoadModel(again))
        assert (answer.code, answer.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_INVALID")
        assert answer.message == "model.onnx: the hash differs"
        models.fail = False
        allowed, server.app.registry.before_load = server.app.registry.before_load, no_room
        answer = await refused(server.models.LoadModel(again))
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
        assert answer.message == "900 MiB are needed and 512 MiB are there"
        server.app.registry.before_load = allowed
        await clients.goes_on()
        answer = await refused(server.models.LoadModel(LoadModelRequest(bundle="next")))
        assert answer.fields == {"bundle": "a model of that name is loaded already"}
        assert versions.alive == [True, False]  # the second was loaded before its name was known
        await clients.goes_on()
        await server.models.LoadModel(again)
        await until(lambda: versions.alive == [False, False, True])


async def test_versions_side_by_side(models: FakeModels, tmp_path: Path) -> None:
    async with reloadable(models, tmp_path) as server:
        await server.models.LoadModel(LoadModelRequest(bundle="next", name="v2"))
        listed = await server.models.ListModels(ListModelsRequest())
        assert {model.name: model.is_default for model in listed.models} == {
            "tiny-guard": True,
            "tiny-instruct": True,
            "v2": False,
        }
        for name, answered_by in {"": "tiny-guard", "v2": "v2", "tiny-guard": "tiny-guard"}.items():
            assert (await server.moderation.Classify(question(UNSAFE_MARK, model=name))).model == answered_by
        replaced = await server.models.LoadModel(LoadModelRequest(bundle="next", name="v3", replace="tiny-guard"))
        assert (replaced.model.name, replaced.model.is_default) == ("v3", True)
        assert (await server.moderation.Classify(question("x"))).model == "v3"
        gone = await refused(server.moderation.Classify(question("x", model="tiny-guard")))
        assert gone.code is grpc.StatusCode.FAILED_PRECONDITION
        await server.models.UnloadModel(UnloadModelRequest(name="v3"))
        assert (await server.moderation.Classify(question(UNSAFE_MARK))).model == "v2"
        assert (await server.models.GetModel(GetModelRequest(name="v2"))).model.is_default
        assert await server.serving("guard.v1.ModerationService") and await server.serving()


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"name": "no spaces"}, grpc.StatusCode.INVALID_ARGUMENT, "name"),
        ({"name": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT, "name"),
        ({"name": "tiny-instruct"}, grpc.StatusCode.INVALID_ARGUMENT, "name"),
        ({"name": "tiny-instruct", "replace": "tiny-guard"}, grpc.StatusCode.INVALID_ARGUMENT, "name"),
        ({"replace": "tiny-instruct"}, grpc.StatusCode.INVALID_ARGUMENT, "replace"),
        ({"replace": "unknown"}, grpc.StatusCode.NOT_FOUND, None),
    ],
)
async def test_names_of_new_models(
    models: FakeModels, tmp_path: Path, fields: dict[str, str], code: grpc.StatusCode, field: str | None
) -> None:
    versions = Versions(models)
    async with reloadable(versions, tmp_path) as server:
        answer = await refused(server.models.LoadModel(LoadModelRequest(bundle="next", **fields)))
        assert answer.code is code
        assert list(answer.fields) == ([field] if field else [])
        assert versions.alive == [True, True]  # nothing was loaded for it
