"""Who gets in, and in which order: tokens, deadlines that cannot be met, and callers that want everything."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.conversation import Conversation, Message, Role
from guard.generation import GenerateTask
from guard.v1.generation_pb2 import GenerateRequest, StreamGenerateRequest
from server.auth import keys

from .fakes import FakeModels
from .process import ROOT
from .running import Running, message, question, refused, running, until

KEYS = {name: keys.new_key() for name in ("greedy", "modest", "third")}
LONG = "a long story about bread " * 400  # 10,000 tokens of these models


def written(max_tokens: int) -> GenerateRequest:
    return GenerateRequest(messages=[message("x")], max_tokens=max_tokens, temperature=0.0)


async def learn(server: Running, text: str = "bread") -> None:
    """Let the engine see what requests cost."""
    for index in range(10):
        assert (await server.moderation.Classify(question(f"{text} {index}"))).verdict


# ---------------------------------------------------------------------------------------------- tokens


async def test_tokens_that_wait_are_limited(models: FakeModels) -> None:
    """Failure test 1: a few requests for long texts are as much work as many for short ones."""
    models.step_seconds = 0.01
    async with running(models, max_queued_tokens=3000) as server:
        _, generator = server.app.registry.instruct()
        calls: list[asyncio.Future[Any]] = []
        for index in range(8):
            calls.append(asyncio.ensure_future(server.generation.Generate(written(2000))))
            await until(lambda count=index + 1: generator.engine.stats.active == count)
        calls.append(asyncio.ensure_future(server.generation.Generate(written(2000))))
        await until(lambda: generator.engine.stats.queued == 1)
        answer = await refused(server.generation.Generate(written(2000)))
        assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert answer.info.reason == "QUEUE_FULL"
        assert answer.retry_after_s is not None and answer.pushback_ms is not None
        short = asyncio.ensure_future(server.generation.Generate(written(10)))
        await until(lambda: generator.engine.stats.queued == 2)
        for call in (*calls, short):
            call.cancel()
        await asyncio.gather(*calls, short, return_exceptions=True)
        await until(lambda: generator.engine.jobs == 0)


# ---------------------------------------------------------------------------------------------- deadlines


async def test_a_deadline_that_cannot_be_met_costs_no_step(models: FakeModels) -> None:
    """Failure test 3: by what the steps so far took, the answer would come much too late."""
    models.step_seconds = 0.05
    async with running(models, max_message_mib=1.0) as server:
        await learn(server)
        runner = models.runners["guard"]
        steps = runner.steps
        for _ in range(3):
            began = time.monotonic()
            answer = await refused(server.moderation.Classify(question(LONG), timeout=0.8))
            assert time.monotonic() - began < 0.7  # the server said so, before the client lost patience
            assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert answer.info.reason == "DEADLINE"
            assert "the deadline leaves 0." in answer.message
        assert runner.steps == steps
        assert (await server.moderation.Classify(question("bread"), timeout=10)).verdict
        assert (await server.moderation.Classify(question(LONG), timeout=60)).verdict
        assert runner.steps > steps


async def test_a_queue_that_is_too_long_for_a_deadline(models: FakeModels) -> None:
    """Failure test 3: what waits already counts, too."""
    models.step_seconds = 0.05
    async with running(models) as server:
        _, classifier = server.app.registry.guard()
        await learn(server)
        crowd = [asyncio.ensure_future(server.moderation.Classify(question(f"bread {i}"))) for i in range(40)]
        await until(lambda: classifier.engine.jobs >= 25)
        answer = await refused(server.moderation.Classify(question("bread"), timeout=0.3))
        assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert answer.info.reason == "DEADLINE"
        assert (await server.moderation.Classify(question("bread"), timeout=20)).verdict
        assert all(answer.verdict for answer in await asyncio.gather(*crowd))


async def test_deadlines_that_can_be_met_are_not_refused(models: FakeModels) -> None:
    """Three times what it takes is enough for everybody, alone and in company."""
    models.step_seconds = 0.02
    async with running(models) as server:
        await learn(server)
        began = time.monotonic()
        await asyncio.gather(*(server.moderation.Classify(question(f"bread {index}")) for index in range(30)))
        enough = 3 * (time.monotonic() - began) + 1
        answers = await asyncio.gather(
            *(server.moderation.Classify(question(f"cake {index}"), timeout=enough) for index in range(30))
        )
        assert all(answer.verdict for answer in answers)


async def test_the_estimate_can_be_switched_off(models: FakeModels) -> None:
    models.step_seconds = 0.05
    async with running(models, max_message_mib=1.0, deadline_part=0.0) as server:
        await learn(server)
        steps = models.runners["guard"].steps
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.moderation.Classify(question(LONG), timeout=0.8)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert models.runners["guard"].steps > steps


# ---------------------------------------------------------------------------------------------- callers


class Crowd:
    """Callers with keys of their own; ``answered`` is who was answered, in that order."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self.answered: list[str] = []
        self.refused: list[str] = []

    def ask(self, caller: str, text: str) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._ask(caller, text))

    async def _ask(self, caller: str, text: str) -> None:
        metadata = (("authorization", f"Bearer {KEYS[caller]}"),)
        try:
            await self._server.moderation.Classify(question(text), metadata=metadata, timeout=30)
            self.answered.append(caller)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            self.refused.append(caller)


@pytest.fixture
def callers(tmp_path: Path) -> Path:
    path = tmp_path / "callers.yaml"
    entries = "".join(f'  {name}: {{keys: ["{keys.key_hash(key)}"]}}\n' for name, key in KEYS.items())
    path.write_text(f"callers:\n{entries}")
    return path


async def test_a_crowd_of_one_caller_does_not_hold_up_another(models: FakeModels, callers: Path) -> None:
    models.step_seconds = 0.2
    async with running(models, callers=callers) as server:
        _, classifier = server.app.registry.guard()
        crowd = Crowd(server)
        waiting = [crowd.ask("greedy", f"bread {index}") for index in range(40)]
        await until(lambda: classifier.engine.stats.queued >= 15)
        waiting += [crowd.ask("modest", f"cake {index}") for index in range(3)]
        await asyncio.gather(*waiting)
        assert not crowd.refused
        places = [place for place, caller in enumerate(crowd.answered) if caller == "modest"]
        # Eight run when they come, some more have been answered meanwhile; then the callers take turns.
        assert places[-1] < 30, crowd.answered


async def test_one_caller_cannot_take_all_the_room(models: FakeModels, callers: Path) -> None:
    """Failure test 1: the room of those who have asked for nothing yet."""
    models.step_seconds = 0.05
    async with running(models, callers=callers, max_requests=20) as server:
        gate = server.app.gates["guard.v1.ModerationService"]
        crowd = Crowd(server)
        waiting = [crowd.ask("greedy", f"bread {index}") for index in range(60)]
        await until(lambda: len(crowd.refused) > 20)
        assert 8 < gate.requests <= 16  # four for each place that is free
        waiting += [crowd.ask(caller, caller) for caller in ("modest", "third")]
        await asyncio.gather(*waiting)
        assert {"modest", "third"} <= set(crowd.answered)
        assert set(crowd.refused) == {"greedy"}
        await until(lambda: gate.requests == gate.bytes == 0)


# ---------------------------------------------------------------------------------------------- slow readers


async def read(call: Any) -> list[Any]:
    parts = []
    while (part := await call.read()) is not grpc.aio.EOF:
        parts.append(part)
    return parts


async def stalled(server: Running, runner: Any) -> None:
    """Wait until no step is made any more."""
    steps = -1
    async with asyncio.timeout(20):
        while steps != runner.steps:
            steps = runner.steps
            await asyncio.sleep(0.3)


async def test_a_slow_reader_pauses_its_own_text_only(models: FakeModels) -> None:
    """Failure test 6: what is unsent is bounded, others are served, and the text goes on where it was."""
    models.step_seconds = 0.001
    async with running(models, max_unsent_tokens=64) as server:
        _, generator = server.app.registry.instruct()
        runner = models.runners["instruct"]
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(server.app.address, options=options) as channel:
            slow = Running(server.app, channel).generation
            request = StreamGenerateRequest(messages=[message("x")], max_tokens=3000, temperature=0.0)
            calls = [slow.StreamGenerate(request)]
            assert (await calls[0].read()).model
            await stalled(server, runner)
            assert runner.steps < 3000
            held = generator.engine.kv_bytes_in_use
            assert generator.engine.jobs == 1 and held > 0

            cpu_s, began = time.process_time(), time.monotonic()
            await asyncio.sleep(0.5)
            assert (time.process_time() - cpu_s) / (time.monotonic() - began) < 0.5  # nobody turns in circles

            quick = await server.generation.Generate(written(20), timeout=10)
            assert quick.usage.completion_tokens == 20
            assert generator.engine.jobs == 1 and generator.engine.kv_bytes_in_use == held

            text = "".join(part.text for part in await read(calls[0]))
            assert len(text) == 3000
            assert text == (await server.generation.Generate(written(3000))).text
            await until(lambda: generator.engine.jobs == 0 and generator.engine.kv_bytes_in_use == 0)


async def test_slow_readers_do_not_keep_others_from_starting(models: FakeModels) -> None:
    """Failure test 6: more of them than jobs may run at a time."""
    async with running(models, max_unsent_tokens=16, stream_idle_s=4.0) as server:
        _, generator = server.app.registry.instruct()
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(server.app.address, options=options) as channel:
            slow = Running(server.app, channel).generation
            request = StreamGenerateRequest(messages=[message("x")], max_tokens=4000, temperature=0.0)
            calls = [slow.StreamGenerate(request) for _ in range(10)]
            for call in calls:
                assert (await call.read()).model
            assert (await server.generation.Generate(written(20), timeout=20)).text
            assert generator.engine.jobs == 10
            await until(lambda: generator.engine.jobs == 0 and generator.engine.kv_bytes_in_use == 0, timeout_s=20)
            for call in calls:
                assert (await refused(read(call))).info.reason == "SLOW_READER"


async def test_a_paused_text_ends_when_its_caller_leaves(models: FakeModels) -> None:
    """Failure tests 4 and 6."""
    async with running(models, max_unsent_tokens=16) as server:
        _, generator = server.app.registry.instruct()
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(server.app.address, options=options) as channel:
            request = StreamGenerateRequest(messages=[message("x")], max_tokens=4000, temperature=0.0)
            call = Running(server.app, channel).generation.StreamGenerate(request)
            assert (await call.read()).model
            await stalled(server, models.runners["instruct"])
            assert generator.engine.jobs == 1
            steps = models.runners["instruct"].steps
            call.cancel()
            await until(lambda: generator.engine.jobs == 0 and generator.engine.kv_bytes_in_use == 0)
            assert models.runners["instruct"].steps == steps


# ---------------------------------------------------------------------------------------------- clients that vanish

CLIENT = """
import sys, grpc
from guard.v1.generation_pb2 import StreamGenerateRequest
from guard.v1.generation_pb2_grpc import GenerationServiceStub
from guard.v1.moderation_pb2 import Message, ROLE_USER

stub = GenerationServiceStub(grpc.insecure_channel(sys.argv[1]))
asked = StreamGenerateRequest(messages=[Message(role=ROLE_USER, content="x")], max_tokens=3000, temperature=0.0)
parts = [stub.StreamGenerate(asked) for _ in range(12)]
print(next(parts[0]).model, flush=True)
for part in parts[0]:
    pass
"""


async def test_a_client_that_is_killed(models: FakeModels) -> None:
    """Failure test 4: eight texts are written and four wait; at most one more step, nothing held, none of the four."""
    models.step_seconds = 0.02
    async with running(models) as server:
        _, generator = server.app.registry.instruct()
        runner, gate = models.runners["instruct"], server.app.gates["guard.v1.GenerationService"]
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, server.app.address, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert client.stdout is not None and await client.stdout.readline()
        task = GenerateTask(Conversation((Message(Role.USER, "x"),)))
        eight_prompts = 8 * generator.prompt_tokens(task)
        await until(lambda: generator.engine.stats.prefill_tokens == eight_prompts, timeout_s=20)
        await until(lambda: generator.engine.stats.queued == 4)
        client.kill()
        await client.wait()
        await until(lambda: generator.engine.jobs == 0 and gate.requests == 0)
        assert generator.engine.kv_bytes_in_use == gate.bytes == 0
        steps = runner.steps
        await asyncio.sleep(0.2)
        assert runner.steps == steps
        assert generator.engine.stats.prefill_tokens == eight_prompts
