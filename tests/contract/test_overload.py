"""More work than there is room for: what is accepted is served, the rest is refused at once, with a time to return."""

from __future__ import annotations

import asyncio
import time
from statistics import median

import grpc

from guard.v1.generation_pb2 import GenerateRequest

from .fakes import FakeModels
from .running import Refusal, Running, message, question, refusal, refused, running, until


def check_queue_full(answer: Refusal) -> None:
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.info.reason == "QUEUE_FULL"
    assert answer.retry_after_s is not None
    assert 0.1 <= answer.retry_after_s <= 60
    assert answer.pushback_ms == round(answer.retry_after_s * 1000)


async def test_ten_times_the_capacity(models: FakeModels) -> None:
    """Failure test 1."""
    models.step_seconds = 0.2
    async with running(models, max_requests=6) as server:
        gate = server.app.gates["guard.v1.ModerationService"]
        most, slowest, answered, refusals = 0, 0.0, 0, 0

        async def ask(index: int) -> None:
            nonlocal most, slowest, answered, refusals
            began = time.monotonic()
            try:
                assert (await server.moderation.Classify(question(f"x {index}"), timeout=20)).verdict
                answered += 1
            except grpc.aio.AioRpcError as error:
                check_queue_full(refusal(error))
                refusals += 1
                slowest = max(slowest, time.monotonic() - began)
            most = max(most, gate.requests)

        await server.moderation.Classify(question("connected"))
        await asyncio.gather(*(ask(index) for index in range(60)))
        # On a machine that stalls, a call may arrive after an early one has left.
        assert answered + refusals == 60
        assert 6 <= answered <= 9
        assert most <= 6
        assert (
            slowest < 1.0
        )  # not behind the answers, which take longer; how fast exactly is for a quiet machine to say
        began = time.monotonic()
        crowd = [asyncio.ensure_future(ask(index)) for index in range(6)]
        await until(lambda: gate.requests == 6)
        check_queue_full(await refused(server.moderation.Classify(question("one more"))))
        assert time.monotonic() - began < 1.0
        await asyncio.gather(*crowd)
        assert gate.requests == gate.bytes == 0


async def test_bytes_are_limited_too(models: FakeModels) -> None:
    """Failure test 1."""
    models.step_seconds = 0.03
    async with running(models, max_message_mib=0.01, max_queued_mib=0.01) as server:
        gate = server.app.gates["guard.v1.ModerationService"]
        first = asyncio.ensure_future(server.moderation.Classify(question("x" * 3000)))
        await until(lambda: gate.bytes > 3000)
        second = asyncio.ensure_future(server.moderation.Classify(question("x" * 3000)))
        await until(lambda: gate.bytes > 6000)
        check_queue_full(await refused(server.moderation.Classify(question("x" * 4500))))
        small = asyncio.ensure_future(server.moderation.Classify(question("x")))
        assert all(answer.verdict for answer in await asyncio.gather(first, second, small))


async def test_a_full_engine_queue_refuses(models: FakeModels) -> None:
    """Failure test 1. The engine's own limit, behind a gate that is wide open."""
    models.step_seconds = 0.05
    async with running(models, max_queued=1) as server:
        _, generator = server.app.registry.instruct()
        long = GenerateRequest(messages=[message("x")], max_tokens=4000, temperature=0.0)
        calls = [server.generation.Generate(long, timeout=20) for _ in range(20)]
        waiting = [asyncio.ensure_future(refused(call)) for call in calls]
        await until(lambda: sum(call.done() for call in waiting) >= 11)
        for answer in [call.result() for call in waiting if call.done()]:
            check_queue_full(answer)
        assert generator.engine.jobs <= 9  # eight take turns, one waits
        for call, outcome in zip(calls, waiting, strict=True):
            if not outcome.done():
                call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_generations_do_not_shut_out_judgements(models: FakeModels) -> None:
    """Failure tests 1 and 2."""
    models.step_seconds = 0.01
    async with running(models, max_requests=4) as server:
        long = GenerateRequest(messages=[message("x")], max_tokens=1000, temperature=0.0)
        calls = [asyncio.ensure_future(server.generation.Generate(long)) for _ in range(4)]
        await until(lambda: server.app.gates["guard.v1.GenerationService"].requests == 4)
        check_queue_full(await refused(server.generation.Generate(long)))
        assert (await server.moderation.Classify(question("x"), timeout=2)).verdict
        assert await server.serving()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_refusals_take_less_than_50_ms_while_the_engine_works(models: FakeModels) -> None:
    """Failure test 1: the median, so that a machine that stalls now and then does not decide."""
    models.step_seconds = 0.01
    async with running(models, max_requests=4) as server:
        long = GenerateRequest(messages=[message("x")], max_tokens=3000, temperature=0.0)
        calls = [asyncio.ensure_future(server.generation.Generate(long)) for _ in range(4)]
        await until(lambda: server.app.gates["guard.v1.GenerationService"].requests == 4)
        took = []
        for _ in range(40):
            began = time.monotonic()
            check_queue_full(await refused(server.generation.Generate(long)))
            took.append(time.monotonic() - began)
        assert median(took) < 0.05
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_refused_request_gives_its_permit_back(server: Running) -> None:
    for _ in range(100):
        await refused(server.moderation.Classify(question(" ")))
    assert all(gate.requests == gate.bytes == 0 for gate in server.app.gates.values())
