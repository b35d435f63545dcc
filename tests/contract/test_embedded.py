"""A server whose calls somebody else takes: what Ray Serve and KServe stand on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from guard.errors import BundleError
from guard.v1 import moderation_pb2
from guard.v1.generation_pb2 import StreamGenerateRequest
from guard.v1.model_pb2 import ListModelsRequest
from server.app import App
from server.embedded import METHODS, Embedded, in_words
from server.invocation import Refused
from server.settings import Settings

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import message, question, until
from .streams import steps


@asynccontextmanager
async def embedded(models: FakeModels, **settings: Any) -> AsyncIterator[tuple[Embedded, App]]:
    """One with both scripted models."""
    both: dict[str, Any] = {"guard": Path("guard"), "instruct": Path("instruct"), "cache_entries": 0}
    app = App(Settings(**(both | settings)), models, listening=False)
    found = Embedded(app)
    await app.start()
    try:
        await app.load()
        yield found, app
    finally:
        await found.close()


async def refused(call: Any) -> Refused:
    """Await ``call``, which must be refused."""
    with pytest.raises(Refused) as caught:
        await call
    return caught.value


def classify(server: Embedded, content: str, *headers: tuple[str, str]) -> Any:
    return server.unary("Classify", question(content).SerializeToString(), headers)


async def test_every_method_has_a_name_of_its_own_and_answers(models: FakeModels) -> None:
    assert {method.path.split("/")[1] for method in METHODS.values()} == {
        "guard.v1.ModerationService",
        "guard.v1.GenerationService",
        "guard.v1.ModelService",
    }
    async with embedded(models) as (server, _):
        assert server.healthy
        safe, unsafe = await classify(server, "hello"), await classify(server, f"{UNSAFE_MARK} it")
        assert (safe.verdict, unsafe.verdict) == (moderation_pb2.VERDICT_SAFE, moderation_pb2.VERDICT_UNSAFE)
        answer: Any = await server.unary("ListModels", ListModelsRequest().SerializeToString(), [])
        assert len(answer.models) == 2
    assert not server.healthy


async def test_refusals_have_code_and_details(models: FakeModels) -> None:
    async with embedded(models, max_message_mib=0.001) as (server, _):
        for body, code, said in (
            (question(" ").SerializeToString(), "INVALID_ARGUMENT", "INVALID_INPUT: messages[0].content: is empty"),
            (b"\xff\xff", "INVALID_ARGUMENT", "INVALID_INPUT: request: is not a readable message"),
            (b"\0" * 2000, "INVALID_ARGUMENT", "INVALID_INPUT: request: a message of 2000 bytes, the limit is 1048"),
            (question(BROKEN_MARK).SerializeToString(), "INTERNAL", "MODEL_OUTPUT_UNREADABLE: "),
        ):
            found = await refused(server.unary("Classify", body, []))
            assert found.code is grpc.StatusCode[code]
            assert in_words(found.status).startswith(said)
            assert "grpc-status-details-bin" in dict(found.trailers)


async def test_a_deadline_comes_as_metadata(models: FakeModels) -> None:
    models.step_seconds = 0.2
    async with embedded(models) as (server, _):
        found = await refused(classify(server, "hello", ("guardlet-timeout", "0.05")))
        assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_overload_says_when_to_come_back(models: FakeModels) -> None:
    models.step_seconds = 0.2
    async with embedded(models, max_requests=1) as (server, app):
        first = asyncio.create_task(classify(server, UNSAFE_MARK))
        await until(lambda: app.gates["guard.v1.ModerationService"].requests == 1)
        found = await refused(classify(server, "hello"))
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in found.status.details)
        assert in_words(found.status).endswith(f"try again in {retry.retry_delay.ToTimedelta().total_seconds():g} s")
        assert (await first).verdict == moderation_pb2.VERDICT_UNSAFE


async def test_streams_of_answers(models: FakeModels) -> None:
    request = StreamGenerateRequest(messages=[message("hello")], max_tokens=8)
    async with embedded(models) as (server, _):
        found: list[Any] = [part async for part in server.stream("StreamGenerate", request.SerializeToString(), [])]
        assert found[0].request_id and found[-1].usage.completion_tokens == 8
        bad = server.stream("StreamGenerate", StreamGenerateRequest().SerializeToString(), [])
        assert (await refused(anext(bad))).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_that_is_closed_frees_its_place(models: FakeModels) -> None:
    models.step_seconds = 0.01
    request = StreamGenerateRequest(messages=[message("hello")], max_tokens=400)
    async with embedded(models) as (server, app):
        parts = server.stream("StreamGenerate", request.SerializeToString(), [])
        await anext(parts)
        assert app.gates["guard.v1.GenerationService"].requests == 1
        await parts.aclose()  # type: ignore[attr-defined]
        assert app.gates["guard.v1.GenerationService"].requests == 0


async def test_a_stream_that_nobody_reads_can_be_closed(models: FakeModels) -> None:
    request = StreamGenerateRequest(messages=[message("hello")], max_tokens=400)
    async with embedded(models) as (server, app):
        parts = server.stream("StreamGenerate", request.SerializeToString(), [])
        await anext(parts)
        await asyncio.sleep(0.2)  # the next part waits, and the one after it for room
        async with asyncio.timeout(5):
            await parts.aclose()  # type: ignore[attr-defined]
        assert app.gates["guard.v1.GenerationService"].requests == 0
        assert not [task for task in asyncio.all_tasks() if "Queue" in str(task.get_coro())]


async def test_a_slow_reader_gets_everything(models: FakeModels) -> None:
    request = StreamGenerateRequest(messages=[message("hello")], max_tokens=40)
    text = ""
    async with embedded(models) as (server, _):
        async for part in server.stream("StreamGenerate", request.SerializeToString(), []):
            text += getattr(part, "text", "")
            await asyncio.sleep(0.02)
    assert len(text) == 40


async def test_streams_of_requests(models: FakeModels) -> None:
    async def sent(*asked: Any) -> AsyncIterator[bytes]:
        for step in asked:
            yield step.SerializeToString()

    async with embedded(models) as (server, app):
        for words, verdict in (("all is well. " * 3, "VERDICT_SAFE"), (f"now {UNSAFE_MARK} it.", "VERDICT_UNSAFE")):
            asked = sent(*steps([words]))
            found: list[Any] = [part async for part in server.stream("StreamClassify", asked, [])]
            assert moderation_pb2.Verdict.Name(found[-1].result.verdict) == verdict
        without_start = server.stream("StreamClassify", sent(*steps(["x"])[1:]), [])
        assert "start: is required" in (await refused(anext(without_start))).status.message
        assert app.gates["guard.v1.ModerationService"].requests == 0


async def test_a_bundle_that_does_not_load_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        async with embedded(FakeModels(tmp_path, fail=True)):
            raise AssertionError("it was broken")
