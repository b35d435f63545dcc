"""Engines that crash or hang, in real server processes. Whatever happens: no verdict that the model did not give."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import FINISH_REASON_LENGTH, GenerateRequest
from guard.v1.moderation_pb2 import VERDICT_SAFE, VERDICT_UNSAFE

from .fakes import UNSAFE_MARK
from .process import Client, Process, ready, started
from .running import message, question, refused

MODERATION, GENERATION = "guard.v1.ModerationService", "guard.v1.GenerationService"
CANARY = "zebra-quartz-7731"


async def crowd(client: Client, mark: str) -> Counter[str]:
    """One text with ``mark`` and twenty others at the same time: how they end, never wrongly."""

    async def judged(text: str) -> str:
        try:
            answer = await client.moderation.Classify(question(text), timeout=20)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        assert answer.verdict == (VERDICT_UNSAFE if UNSAFE_MARK in text else VERDICT_SAFE)
        assert mark not in text
        return "judged"

    others = [f"text {number} {UNSAFE_MARK if number % 2 else ''}" for number in range(20)]
    return Counter(await asyncio.gather(*(judged(text) for text in (f"{CANARY} {mark}", *others))))


async def serving_again(client: Client, service: str = "") -> None:
    async with asyncio.timeout(20):
        while not await client.serving(service):
            await asyncio.sleep(0.02)


async def blocks(client: Client) -> None:
    assert (await client.moderation.Classify(question(f"now {UNSAFE_MARK}"))).verdict == VERDICT_UNSAFE
    assert (await client.moderation.Classify(question("now bread"))).verdict == VERDICT_SAFE


async def test_a_crashed_engine_is_restarted_in_place() -> None:
    """Failure test 17: in flight UNAVAILABLE, NOT_SERVING, then a new engine; the other model goes on meanwhile."""
    async with started(FAKE_STEP_SECONDS="0.02") as process:
        client = await ready(process)
        writing = asyncio.ensure_future(
            client.generation.Generate(GenerateRequest(messages=[message("x")], max_tokens=100, temperature=0.0))
        )
        seen: list[bool] = []
        watching = asyncio.ensure_future(watched(client, seen))
        ends = await crowd(client, "#crash#")
        # How many were judged before the hang is a matter of turns.
        assert ends.keys() <= {"judged", "UNAVAILABLE"} and ends["UNAVAILABLE"] >= 1, ends
        assert (await process.event("engine_died"))["model"] == "tiny-guard"
        await process.event("engine_restarted")
        await serving_again(client)
        watching.cancel()
        assert not all(seen)  # health told
        await blocks(client)
        answer = await writing
        assert (answer.finish_reason, answer.usage.completion_tokens) == (FINISH_REASON_LENGTH, 100)
        await ended_well(process, client)


async def watched(client: Client, seen: list[bool]) -> None:
    while True:
        seen.append(await client.serving(MODERATION))
        await asyncio.sleep(0.002)


async def ended_well(process: Process, client: Client) -> None:
    await client.channel.close()
    process.process.send_signal(signal.SIGINT)
    assert await process.exit_status() == 0
    assert CANARY.encode() not in process.text


async def test_an_engine_that_goes_on_crashing_ends_the_process() -> None:
    """Failure test 17: three restarts, then a non-zero exit for the supervisor."""
    async with started() as process:
        client = await ready(process)
        for crashes in range(1, 4):
            answer = await refused(client.moderation.Classify(question("#crash#")))
            assert answer.code is grpc.StatusCode.UNAVAILABLE and answer.retry_after_s
            await process.event("engine_restarted", crashes)
            await serving_again(client)
            await blocks(client)
        await refused(client.moderation.Classify(question("#crash#")))
        assert await process.exit_status() == 1
        (given_up,) = [event for event in process.events if event["event"] == "engine_given_up"]
        assert given_up["model"] == "tiny-guard"
        await client.channel.close()


async def test_a_model_that_cannot_be_loaded_again_ends_the_process() -> None:
    """Failure test 17: what fails to load again does not serve, and the process ends."""
    async with started(FAKE_FAIL_AGAIN="1") as process:
        client = await ready(process)
        await refused(client.moderation.Classify(question("#crash#")))
        assert (await process.event("restart_failed"))["message"] == "model.onnx: the hash differs"
        assert not await client.serving(MODERATION)
        answer = await refused(client.moderation.Classify(question("bread")))
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert await process.exit_status() == 1
        await client.channel.close()


async def test_an_engine_that_hangs_ends_the_process() -> None:
    """Failure test 17: in flight and queued UNAVAILABLE as soon as it is noticed, NOT_SERVING, a non-zero exit."""
    async with started(GUARD_STEP_TIMEOUT_S="1", FAKE_STEP_SECONDS="0.02") as process:
        client = await ready(process)
        began = time.monotonic()
        ends = await crowd(client, "#hang#")
        assert 1 <= time.monotonic() - began < 5
        # How many were judged before the hang is a matter of turns.
        assert ends.keys() <= {"judged", "UNAVAILABLE"} and ends["UNAVAILABLE"] >= 1, ends
        assert await process.exit_status() == 1
        assert time.monotonic() - began < 10
        (hanging,) = [event for event in process.events if event["event"] == "engine_hangs"]
        assert hanging["model"] == "tiny-guard"
        assert CANARY.encode() not in process.text
        await client.channel.close()


async def test_a_hang_during_the_drain_ends_the_process_too() -> None:
    """Failure tests 7 and 17."""
    async with started(GUARD_STEP_TIMEOUT_S="1", GUARD_DRAIN_DELAY_S="0", GUARD_GRACE_S="20") as process:
        client = await ready(process)
        hanging = asyncio.ensure_future(client.moderation.Classify(question("#hang#")))
        await asyncio.sleep(0.1)
        process.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await hanging
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await process.exit_status() == 1
        assert time.monotonic() - began < 10
        await client.channel.close()


@pytest.mark.parametrize("mark", ["#spin#", "#abort#"])
async def test_native_code_that_takes_the_whole_process_along(mark: str) -> None:
    """Failure test 17: nothing in the process can tell anybody, so it ends, and the connections with it."""
    async with started(GUARD_STEP_TIMEOUT_S="1") as process:
        client = await ready(process)
        call: Any = client.moderation.Classify(question(f"{CANARY} {mark}"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await process.exit_status() == (1 if mark == "#spin#" else -signal.SIGABRT)
        assert CANARY.encode() not in process.text
        await client.channel.close()


async def test_after_a_crash_of_the_process_a_new_one_serves() -> None:
    """Failure test 17, as a supervisor sees it: the same port, by the time the client tries again."""
    async with started() as process:
        client = await ready(process)
        address = (await process.event("ready"))["address"]
        with pytest.raises(grpc.aio.AioRpcError):
            await client.moderation.Classify(question("#abort#"))
        assert await process.exit_status() < 0
        async with started(GUARD_ADDRESS=address) as again:
            await again.event("ready")
            answer = await client.moderation.Classify(question(UNSAFE_MARK), wait_for_ready=True, timeout=20)
            assert answer.verdict == VERDICT_UNSAFE
        await client.channel.close()
