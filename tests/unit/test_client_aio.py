"""The asyncio client: the same answers as the blocking one, awaited."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from guard.client import (
    AsyncClassificationStream,
    AsyncGenerationStream,
    AsyncGuardClient,
    Classification,
    ClassificationStream,
    Delta,
    GenerationStream,
    GuardClient,
    NoAnswerError,
    RequestRejectedError,
    ServerUnavailableError,
)
from guard.v1 import generation_pb2, model_pb2, moderation_pb2
from guard.verdict import Verdict
from tests.unit.fake_server import FakeServer, failing, judged, running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as fake:
        yield fake


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[AsyncGuardClient]:
    async with AsyncGuardClient(server.address, timeout_s=10) as guard_client:
        yield guard_client


@pytest.mark.parametrize(
    ("blocking", "awaited"),
    [
        (GuardClient, AsyncGuardClient),
        (GenerationStream, AsyncGenerationStream),
        (ClassificationStream, AsyncClassificationStream),
    ],
)
def test_both_clients_have_the_same_methods(blocking: type, awaited: type) -> None:
    def signatures(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert signatures(blocking) == signatures(awaited)


async def test_calls(server: FakeServer, client: AsyncGuardClient) -> None:
    model = model_pb2.Model(name="m", task=model_pb2.MODEL_TASK_INSTRUCT, state=model_pb2.MODEL_STATE_READY)
    server.handlers = {
        "Classify": lambda request, context: judged(),
        "BatchClassify": lambda request, context: moderation_pb2.BatchClassifyResponse(
            results=[moderation_pb2.BatchClassifyResult(response=judged())]
        ),
        "Generate": lambda request, context: generation_pb2.GenerateResponse(
            text="Hello", finish_reason=generation_pb2.FINISH_REASON_STOP
        ),
        "Tag": lambda request, context: generation_pb2.TagResponse(
            label="news", scores=[generation_pb2.LabelScore(name="news", probability=1.0)]
        ),
        "ListModels": lambda request, context: model_pb2.ListModelsResponse(models=[model]),
        "ListPolicies": lambda request, context: moderation_pb2.ListPoliciesResponse(),
        "GetModel": lambda request, context: model_pb2.GetModelResponse(model=model),
    }
    assert (await client.classify("hello")).verdict is Verdict.UNSAFE
    (item,) = await client.batch_classify(["hello"])
    assert isinstance(item, Classification)
    assert (await client.generate("hello")).finish_reason == "stop"
    assert (await client.tag("hello", ["news", "spam"])).label == "news"
    assert [model.name for model in await client.list_models()] == ["m"]
    assert (await client.get_model("m")).task == "instruct"
    assert await client.list_policies() == ()


async def test_errors_are_typed_and_nothing_unreadable_is_safe(server: FakeServer, client: AsyncGuardClient) -> None:
    server.handlers["Classify"] = lambda request, context: moderation_pb2.ClassifyResponse()
    with pytest.raises(NoAnswerError):
        await client.classify("hello")
    server.handlers["Classify"] = failing(grpc.StatusCode.INVALID_ARGUMENT, "no")
    with pytest.raises(RequestRejectedError):
        await client.classify("hello")


async def test_stream(server: FakeServer, client: AsyncGuardClient) -> None:
    responses = [
        generation_pb2.StreamGenerateResponse(model="fake"),
        generation_pb2.StreamGenerateResponse(text="Hel", token_count=1),
        generation_pb2.StreamGenerateResponse(text="lo", token_count=2),
        generation_pb2.StreamGenerateResponse(
            finish_reason=generation_pb2.FINISH_REASON_STOP, usage=moderation_pb2.Usage(completion_tokens=3)
        ),
    ]
    server.handlers["StreamGenerate"] = lambda request, context: iter(responses)
    stream = client.stream_generate("hi")
    assert [delta async for delta in stream] == [Delta("Hel", 1), Delta("lo", 2)]
    assert (await stream.result()).text == "Hello"

    assert (await client.stream_generate("hi").result()).text == "Hello"

    server.handlers["StreamGenerate"] = lambda request, context: iter(responses[:-1])
    with pytest.raises(NoAnswerError):
        await client.stream_generate("hi").result()


async def test_cancelling_the_task_cancels_the_call(server: FakeServer, client: AsyncGuardClient) -> None:
    started, gone = threading.Event(), threading.Event()

    def wait(request: Any, context: grpc.ServicerContext) -> moderation_pb2.ClassifyResponse:
        context.add_callback(gone.set)
        started.set()
        gone.wait(5)
        return judged()

    server.handlers["Classify"] = wait
    task = asyncio.create_task(client.classify("hello"))
    assert await asyncio.to_thread(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(gone.wait, 5)


async def test_waiting_for_health(server: FakeServer, client: AsyncGuardClient) -> None:
    await client.wait_until_serving(timeout_s=10)
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await client.is_serving()
    with pytest.raises(ServerUnavailableError):
        await client.wait_until_serving(timeout_s=0.3)
