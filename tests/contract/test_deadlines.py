"""Every call has a deadline, and nothing is computed for one that has passed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from guard.engine.sequence import Ticket
from guard.errors import CancelledError
from guard.generation import GenerateTask, Generation
from guard.v1.generation_pb2 import GenerateRequest, StreamGenerateRequest

from .fakes import FakeModels
from .running import message, question, refused, running, until


def endless(**fields: Any) -> dict[str, Any]:
    return {"messages": [message("x")], "max_tokens": 3000, "temperature": 0.0} | fields


@pytest.mark.parametrize("timeout", [None, 60.0])
async def test_the_servers_deadline_ends_a_call(models: FakeModels, timeout: float | None) -> None:
    """Failure test 8. Without a deadline the default applies, a longer one is cut to the maximum."""
    models.step_seconds = 0.01
    async with running(models, default_deadline_s=0.3, max_deadline_s=0.3) as server:
        _, generator = server.app.registry.instruct()

        async def stream() -> None:
            async for _ in server.generation.StreamGenerate(StreamGenerateRequest(**endless()), timeout=timeout):
                pass

        for call in (server.generation.Generate(GenerateRequest(**endless()), timeout=timeout), stream()):
            began = time.monotonic()
            answer = await refused(call)
            assert 0.25 < time.monotonic() - began < 2
            assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert answer.info.reason == "DEADLINE"
            await until(lambda: generator.engine.jobs == 0)
        assert models.runners["instruct"].steps < 100


async def test_the_callers_deadline_stops_the_engine(models: FakeModels) -> None:
    """Failure test 4: the client has left by then."""
    models.step_seconds = 0.01
    async with running(models) as server:
        _, generator = server.app.registry.instruct()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.generation.Generate(GenerateRequest(**endless()), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: generator.engine.jobs == 0)
        assert models.runners["instruct"].steps < 60


async def test_a_deadline_that_passes_in_the_queue_costs_no_step(models: FakeModels) -> None:
    """Failure test 3."""
    models.step_seconds = 0.1
    async with running(models) as server:
        _, classifier = server.app.registry.guard()
        alone = models.runners["guard"]
        first = asyncio.ensure_future(server.moderation.Classify(question("x")))
        await until(lambda: alone.steps == 1)
        for _ in range(10):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await server.moderation.Classify(question("x"), timeout=0.005)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await first).verdict
        await until(lambda: classifier.engine.jobs == 0)
        assert alone.steps == 2  # the prefix and the rest of the first one


async def test_queued_calls_whose_caller_left_never_run(models: FakeModels) -> None:
    """Failure test 4."""
    models.step_seconds = 0.1
    async with running(models) as server:
        _, classifier = server.app.registry.guard()
        first = asyncio.ensure_future(server.moderation.Classify(question("x")))
        await until(lambda: classifier.engine.jobs == 1)
        late = [server.moderation.Classify(question(f"{index}")) for index in range(20)]
        await until(lambda: classifier.engine.jobs > 10)
        for call in late:
            call.cancel()
        assert (await first).verdict
        await until(lambda: classifier.engine.jobs == 0)
        assert models.runners["guard"].steps < 12  # at most what was active when they left


async def test_a_slow_submission_is_abandoned(models: FakeModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failure test 4: while the prompt is being tokenized; the ticket that still comes out is cancelled."""
    models.step_seconds = 0.01
    async with running(models) as server:
        _, generator = server.app.registry.instruct()
        submit, tickets = generator.submit, []

        def slow(task: GenerateTask, on_delta: Any, deadline: float | None, caller: str) -> Ticket[Generation]:
            time.sleep(0.3)
            tickets.append(submit(task, on_delta, None))
            return tickets[-1]

        monkeypatch.setattr(generator, "submit", slow)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.generation.Generate(GenerateRequest(**endless()), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: bool(tickets))
        assert isinstance(await asyncio.to_thread(tickets[0].future.exception, 5), CancelledError)
        assert models.runners["instruct"].steps < 5
