"""ModelService: what there is, and the admin calls."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from guard.v1 import model_pb2
from guard.v1.model_pb2 import (
    GetModelRequest,
    ListModelsRequest,
    LoadModelRequest,
    UnloadModelRequest,
)
from tests.unit.guard.builders import write_bundle

from .fakes import FakeModels
from .running import Running, question, refused, running, until


async def test_list_and_get(server: Running) -> None:
    listed = await server.models.ListModels(ListModelsRequest())
    guard, instruct = listed.models
    assert (guard.name, guard.task, guard.state) == (
        "tiny-guard",
        model_pb2.MODEL_TASK_GUARD,
        model_pb2.MODEL_STATE_READY,
    )
    assert [category.code for category in guard.categories] == ["S1", "S2", "S10"]
    assert guard.supports_custom_categories
    assert (instruct.name, instruct.task) == ("tiny-instruct", model_pb2.MODEL_TASK_INSTRUCT)
    assert not instruct.categories
    for model in listed.models:
        assert model.max_context_tokens == 4096
        assert model.kv_bytes_per_token == 32
        assert len(model.manifest_sha256) == 64
        assert (await server.models.GetModel(GetModelRequest(name=model.name))).model == model


async def test_pages(server: Running) -> None:
    first = await server.models.ListModels(ListModelsRequest(page_size=1))
    second = await server.models.ListModels(ListModelsRequest(page_size=1, page_token=first.next_page_token))
    assert [model.name for page in (first, second) for model in page.models] == ["tiny-guard", "tiny-instruct"]
    assert second.next_page_token == ""
    answer = await refused(server.models.ListModels(ListModelsRequest(page_size=-1)))
    assert list(answer.fields) == ["page_size"]


async def test_unknown_names(server: Running) -> None:
    answer = await refused(server.models.GetModel(GetModelRequest(name="no such")))
    assert answer.code is grpc.StatusCode.NOT_FOUND
    assert answer.info.reason == "MODEL_NOT_FOUND"
    assert "no such" not in answer.message
    answer = await refused(server.models.GetModel(GetModelRequest()))
    assert list(answer.fields) == ["name"]


async def test_admin_calls_are_off_by_default(server: Running) -> None:
    for call in (
        server.models.LoadModel(LoadModelRequest(bundle="x")),
        server.models.UnloadModel(UnloadModelRequest(name="tiny-guard")),
    ):
        answer = await refused(call)
        assert answer.code is grpc.StatusCode.PERMISSION_DENIED
        assert answer.info.reason == "ADMIN_DISABLED"
    assert await server.serving("guard.v1.ModerationService")


async def test_load_and_unload(models: FakeModels, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    write_bundle(tmp_path / "served" / "mine", "guard")
    async with running(models, guard=None, admin=True, model_directory=tmp_path / "served") as server:
        assert not await server.serving("guard.v1.ModerationService")
        loaded = await server.models.LoadModel(LoadModelRequest(bundle="mine"))
        assert loaded.model.state == model_pb2.MODEL_STATE_READY
        assert await server.serving("guard.v1.ModerationService")
        assert (await server.moderation.Classify(question("bread"))).verdict
        twice = await refused(server.models.LoadModel(LoadModelRequest(bundle="mine")))
        assert twice.fields == {"bundle": "a model of that name is loaded already"}
        _, classifier = server.app.registry.guard()
        await server.models.UnloadModel(UnloadModelRequest(name="tiny-guard"))
        assert not classifier.engine.alive
        assert not await server.serving("guard.v1.ModerationService")
        answer = await refused(server.moderation.Classify(question("bread")))
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_unload_waits_for_the_requests_of_the_model(models: FakeModels, tmp_path: Path) -> None:
    models.step_seconds = 0.1
    async with running(models, admin=True, model_directory=tmp_path) as server:
        _, classifier = server.app.registry.guard()
        judged = asyncio.ensure_future(server.moderation.Classify(question("bread")))
        await until(lambda: classifier.engine.jobs == 1)
        unloading = asyncio.ensure_future(server.models.UnloadModel(UnloadModelRequest(name="tiny-guard")))
        await until(lambda: not server.app.registry.serves("guard"))
        late = await refused(server.moderation.Classify(question("late")))
        assert late.code is grpc.StatusCode.UNAVAILABLE
        assert (await judged).verdict
        await unloading


@pytest.mark.parametrize("bundle", ["", "../outside", "/etc", "a/../../outside", "missing", ".", "link", "a\0b"])
async def test_load_stays_below_the_model_directory(models: FakeModels, tmp_path: Path, bundle: str) -> None:
    (tmp_path / "served").mkdir()
    write_bundle(tmp_path / "outside", "guard")
    (tmp_path / "served" / "link").symlink_to(tmp_path / "outside")
    async with running(models, guard=None, admin=True, model_directory=tmp_path / "served") as server:
        answer = await refused(server.models.LoadModel(LoadModelRequest(bundle=bundle)))
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(answer.fields) == ["bundle"]


async def test_a_bundle_that_is_none_is_refused(models: FakeModels, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    async with running(models, guard=None, admin=True, model_directory=tmp_path) as server:
        for bundle in ("empty", "broken"):
            answer = await refused(server.models.LoadModel(LoadModelRequest(bundle=bundle)))
            assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
            assert answer.info.reason == "BUNDLE_INVALID"


async def test_what_a_model_is_doing(models: FakeModels) -> None:
    models.step_seconds = 0.3
    async with running(models) as server:
        calls = [asyncio.ensure_future(server.moderation.Classify(question("x"))) for _ in range(3)]
        await until(lambda: server.app.registry.guard()[0].users.count == 3)
        busy = (await server.models.GetModel(GetModelRequest(name="tiny-guard"))).model
        assert busy.requests == 3 and busy.kv_bytes_in_use > 0
        await asyncio.gather(*calls)
        idle = (await server.models.GetModel(GetModelRequest(name="tiny-guard"))).model
        assert (idle.requests, idle.kv_bytes_in_use) == (0, 0)
