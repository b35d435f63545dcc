"""StreamClassify: what may be shown of a message that is still being written."""

from __future__ import annotations

import asyncio
import json
import logging
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from guard.v1 import moderation_pb2
from guard.v1.moderation_pb2 import Policy, StreamClassifyRequest

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import ASSISTANT, Running, message, question, refused, running, until
from .streams import FINISH, Streamed, split, start, steps, stream

SAFE, UNSAFE = moderation_pb2.VERDICT_SAFE, moderation_pb2.VERDICT_UNSAFE
STORY = "Once upon a time an old wolf — très gris — met 👩‍👩‍👧 and a dragon 🐉, naïve and 日本語 speaking, in the wood."
DURATION = Duration(nanos=100_000_000)


def idle(server: Running) -> bool:
    """Nothing of any stream is left."""
    _, classifier = server.app.registry.guard()
    engine, gate = classifier.engine, server.app.gates["guard.v1.ModerationService"]
    return engine.jobs == engine.kv_bytes_in_use == gate.requests == gate.bytes == 0


async def test_a_safe_text_is_released_as_it_is_judged(server: Running) -> None:
    told = await stream(server, steps([STORY], request_id="r-1"))
    assert told.result is not None
    assert (told.result.verdict, told.result.request_id, told.result.model) == (SAFE, "r-1", "tiny-guard")
    assert told.result.target == moderation_pb2.TARGET_RESPONSE
    assert told.result.passes == len(told.progress) > 10
    assert [each.checks for each in told.progress] == list(range(1, len(told.progress) + 1))
    judged = [each.judged_bytes for each in told.progress]
    assert judged == sorted(set(judged))
    assert judged[-1] == len(STORY.encode())
    for each in told.progress:
        assert each.verdict == SAFE
        assert each.action == moderation_pb2.ACTION_ALLOW
        assert each.released_bytes == each.judged_bytes
        assert not each.categories
        assert each.view == moderation_pb2.TEXT_VIEW_RAW
        assert each.window.count == 1
        assert STORY.encode()[: each.released_bytes].decode()  # whole code points
    assert told.result.usage.cached_tokens > told.result.usage.prompt_tokens / 2
    await until(lambda: idle(server))


async def test_white_space_at_the_end_needs_no_check(server: Running) -> None:
    told = await stream(server, steps(["Once upon   ", "\n \n"]))
    assert told.result is not None
    assert told.result.verdict == SAFE
    assert told.released == len("Once upon")


@pytest.mark.parametrize("sentences", [False, True])
async def test_any_split_gives_the_same_checks(server: Running, sentences: bool) -> None:
    """Multi-byte characters, their combinations and the unsafe part itself are cut anywhere."""
    fields = {"at_sentence_ends": sentences}
    for text in (STORY * 2, f"{STORY}Then they went to {UNSAFE_MARK} the moon. {STORY}", f"e\u0301{UNSAFE_MARK}"):
        whole = await stream(server, steps([text], **fields))
        assert whole.result is not None
        assert (whole.result.verdict == UNSAFE) == (UNSAFE_MARK in text)
        splits = [list(text), *(split(text, Random(seed)) for seed in range(12))]
        for told in await asyncio.gather(*(stream(server, steps(pieces, **fields)) for pieces in splits)):
            assert told.result is not None
            assert told.checks == whole.checks
            assert told.result.verdict == whole.result.verdict
            assert told.result.unsafe_score == whole.result.unsafe_score


async def test_nothing_unsafe_is_released(server: Running) -> None:
    """Failure test 26: wherever the unsafe part stands, it is found and not one character of it is released."""
    for before in range(0, 120, 7):
        text = f"{'all is well. ' * before}{UNSAFE_MARK} {'and more ' * 20}"
        told = await stream(server, steps(split(text, Random(before))))
        assert told.result is not None
        assert told.result.verdict == UNSAFE
        assert told.released <= len(text.partition(UNSAFE_MARK)[0].encode())
        *earlier, last = told.progress
        assert last.verdict == UNSAFE
        assert last.action == moderation_pb2.ACTION_BLOCK
        assert [found.code for found in last.categories] == ["S2"]
        assert last.released_bytes == (earlier[-1].released_bytes if earlier else 0)
        assert last.judged_bytes > last.released_bytes
        assert all(each.verdict == SAFE for each in earlier)
    await until(lambda: idle(server))


async def test_unsafe_beyond_the_first_window(server: Running) -> None:
    """Failure test 12: the model reads 1024 tokens at a time, and the end of a long text is read too."""
    text = "word " * 700 + UNSAFE_MARK
    told = await stream(server, steps([text], check_every_tokens=64))
    assert told.result is not None
    assert told.result.verdict == UNSAFE
    assert told.result.window.index >= 3
    assert told.result.window.start > 0
    assert told.released <= text.index(UNSAFE_MARK)
    assert [each.window.index for each in told.progress] == sorted(each.window.index for each in told.progress)


async def test_a_disguise_is_seen_through(server: Running) -> None:
    """Failure test 15."""
    told = await stream(server, steps(["So I will \u200b#st\u200beal# it"]))
    assert told.result is not None
    assert told.result.verdict == UNSAFE
    assert told.result.view == told.progress[-1].view == moderation_pb2.TEXT_VIEW_NORMALIZED


async def test_the_last_check_is_classifys(server: Running) -> None:
    for text in (STORY, f"{STORY} {UNSAFE_MARK}"):
        judged = await server.moderation.Classify(question("Tell me a story", text))
        told = await stream(server, steps(list(text)))
        assert told.result is not None
        assert told.result.verdict == judged.verdict


async def test_a_prompt_without_context(server: Running) -> None:
    fields = {"messages": [], "target": moderation_pb2.TARGET_PROMPT}
    told = await stream(server, steps(["How do I ", UNSAFE_MARK], **fields))
    assert told.result is not None
    assert (told.result.verdict, told.result.target) == (UNSAFE, moderation_pb2.TARGET_PROMPT)


async def test_half_close_finishes_too(server: Running) -> None:
    told = await stream(server, steps(["Once upon"])[:-1])
    assert told.result is not None
    assert told.result.verdict == SAFE
    assert told.released == len("Once upon")


async def test_the_policy_applies(server: Running) -> None:
    told = await stream(server, steps([UNSAFE_MARK], policy=Policy(excluded_categories=["S2"])))
    assert told.result is not None
    assert told.result.verdict == SAFE
    strict = await stream(server, steps(["bread"], policy=Policy(threshold=1e-6)))
    assert strict.result is not None
    assert strict.result.verdict == UNSAFE
    assert strict.released == 0


# ---------------------------------------------------------------------------------------------------- time


async def told_after(call: Any) -> moderation_pb2.StreamClassifyProgress:
    response = await asyncio.wait_for(call.read(), 5)
    assert response.WhichOneof("step") == "progress"
    progress: moderation_pb2.StreamClassifyProgress = response.progress
    return progress


async def test_text_that_waits_is_judged_in_time(server: Running) -> None:
    call = server.moderation.StreamClassify()
    await call.write(start(check_every_tokens=1024, check_at_latest_after=DURATION))
    for end, piece in ((4, "Once"), (12, " upon a "), (13, "t")):
        await call.write(StreamClassifyRequest(text=piece))
        progress = await told_after(call)
        assert progress.released_bytes == end
    await call.write(StreamClassifyRequest(text=f"ime {UNSAFE_MARK}"))
    blocked = await told_after(call)
    assert (blocked.verdict, blocked.released_bytes) == (UNSAFE, 13)
    assert (await call.read()).result.verdict == UNSAFE
    assert await call.read() is grpc.aio.EOF


async def test_without_a_time_text_waits_for_its_checkpoint(server: Running) -> None:
    call = server.moderation.StreamClassify()
    await call.write(start(check_every_tokens=1024))
    await call.write(StreamClassifyRequest(text="Once upon a time"))
    waiting = asyncio.ensure_future(call.read())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await call.write(FINISH)
    assert (await waiting).progress.released_bytes == 16


# ---------------------------------------------------------------------------------------------------- wrong use


WRONG: list[tuple[str, list[StreamClassifyRequest]]] = [
    ("start", []),
    ("start", [StreamClassifyRequest(text="a")]),
    ("start", [FINISH]),
    ("start", [start(), start()]),
    ("start", [start(), StreamClassifyRequest(text="a"), start()]),
    ("step", [start(), StreamClassifyRequest()]),
    ("text", [start(), FINISH]),
    ("text", [start()]),
    ("text", [start(), StreamClassifyRequest(text=" \n"), FINISH]),
    ("text", [start(), StreamClassifyRequest(text="é" * (32 << 10) + "a")]),
    ("text", [start(), StreamClassifyRequest(text="a"), FINISH, StreamClassifyRequest(text="b")]),
    ("finish", [start(), StreamClassifyRequest(text="a"), FINISH, FINISH]),
    ("target", [start(target=moderation_pb2.TARGET_UNSPECIFIED)]),
    ("target", [start(target=9)]),
    ("request_id", [start(request_id="no spaces")]),
    ("check_every_tokens", [start(check_every_tokens=7)]),
    ("check_every_tokens", [start(check_every_tokens=1025)]),
    ("check_at_latest_after", [start(check_at_latest_after=Duration())]),
    ("check_at_latest_after", [start(check_at_latest_after=Duration(seconds=61))]),
    ("check_at_latest_after", [start(check_at_latest_after=Duration(seconds=-1))]),
    ("policy.threshold", [start(policy=Policy(threshold=2))]),
    ("policy.excluded_categories", [start(policy=Policy(excluded_categories=["S99"]))]),
    ("messages[0].role", [start(messages=[moderation_pb2.Message(content="a")])]),
    ("messages[0].content", [start(messages=[message(" ")])]),
    ("messages[1].role", [start(messages=[message("a", ASSISTANT)])]),
    ("messages[0].role", [start(messages=[message("a", moderation_pb2.ROLE_SYSTEM)])]),
]


@pytest.mark.parametrize(("field", "requests"), WRONG, ids=range(len(WRONG)))
async def test_wrong_use_names_the_field(models: FakeModels, field: str, requests: list[StreamClassifyRequest]) -> None:
    models.step_seconds = 0.02  # a last check takes as long as a step that follows needs to arrive
    async with running(models) as server:
        answer = await refused(stream(server, requests))
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert answer.info.reason == "INVALID_INPUT"
        assert list(answer.fields) == [field]
        await until(lambda: idle(server))


async def test_a_text_that_is_too_long(server: Running) -> None:
    """Failure test 12: refused with the numbers, not cut off."""
    piece = "many words " * 5000
    answer = await refused(stream(server, steps([piece] * 3, check_every_tokens=1024)))
    assert answer.info.reason == "INPUT_TOO_LONG"
    assert "the limit is 131072" in answer.fields["text"]
    await until(lambda: idle(server))


async def test_an_unknown_model(server: Running) -> None:
    answer = await refused(stream(server, steps(["a"], model="none")))
    assert answer.code is grpc.StatusCode.FAILED_PRECONDITION


# ---------------------------------------------------------------------------------------------------- failures


async def cut_off(server: Running, requests: list[StreamClassifyRequest]) -> tuple[Any, Streamed]:
    """How a stream failed, and what it had said until then."""
    heard = Streamed([], None)
    answer = await refused(stream(server, requests, heard))
    assert heard.result is None
    return answer, heard


async def test_a_model_that_fails_releases_nothing_more(server: Running) -> None:
    """Failure test 16: NaN is no verdict, and what follows it is not released either."""
    text = f"{'all is well. ' * 10}{BROKEN_MARK} and so on"
    answer, heard = await cut_off(server, steps([text]))
    assert answer.code is grpc.StatusCode.INTERNAL
    assert answer.info.reason == "MODEL_OUTPUT_UNREADABLE"
    assert heard.progress
    assert heard.released <= text.index(BROKEN_MARK)
    await until(lambda: idle(server))


async def test_an_engine_that_stops_ends_the_stream(server: Running) -> None:
    """Failure test 17."""
    _, classifier = server.app.registry.guard()
    call = server.moderation.StreamClassify()
    await call.write(start())
    await call.write(StreamClassifyRequest(text="Once upon a time "))
    await told_after(call)
    await asyncio.to_thread(classifier.engine.close)
    await call.write(StreamClassifyRequest(text=f"{UNSAFE_MARK} and more"))

    async def rest() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    assert (await refused(rest())).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
async def test_a_caller_who_leaves_frees_everything(models: FakeModels, how: str) -> None:
    """Failure test 4: while a check runs, and while the server waits for text."""
    models.step_seconds = 0.05
    async with running(models) as server:
        for text in ("Once upon a time " * 20, "Once"):
            channel = grpc.aio.insecure_channel(server.app.address)
            call = Running(server.app, channel).moderation.StreamClassify()
            await call.write(start())
            await call.write(StreamClassifyRequest(text=text))
            _, classifier = server.app.registry.guard()
            await until(lambda: classifier.engine.kv_bytes_in_use > 0)  # noqa: B023 - used at once
            steps_before = models.runners["guard"].steps
            if how == "cancel":
                call.cancel()
            await channel.close()
            await until(lambda: idle(server))
            assert models.runners["guard"].steps <= steps_before + 3
        assert (await server.moderation.Classify(question("bread"))).verdict == SAFE


async def test_hundreds_of_starts_and_cancels_leave_nothing(server: Running) -> None:
    """Failure test 5: at every moment of a stream's life."""

    async def start_and_cancel(index: int) -> None:
        asking = asyncio.ensure_future(stream(server, steps(["Once upon a time "] * 5)))
        for _ in range(index % 7):
            await asyncio.sleep(0.002)
        asking.cancel()

    for _ in range(10):
        await asyncio.gather(*(start_and_cancel(index) for index in range(50)), return_exceptions=True)
    await until(lambda: idle(server))
    told = await stream(server, steps([UNSAFE_MARK]))
    assert told.result is not None
    assert told.result.verdict == UNSAFE


@pytest.mark.parametrize("at", ["waiting", "judging"])
async def test_the_deadline_ends_a_stream(models: FakeModels, at: str) -> None:
    """Failure tests 3 and 8: the server's own deadline, as the caller has a later one."""
    models.step_seconds = 0.1 if at == "judging" else 0.0
    async with running(models, default_deadline_s=0.5, max_deadline_s=0.5) as server:
        call = server.moderation.StreamClassify(timeout=20)
        await call.write(start())
        await call.write(StreamClassifyRequest(text="Once upon a time " * (50 if at == "judging" else 1)))

        async def rest() -> None:
            while (response := await call.read()) is not grpc.aio.EOF:
                assert response.WhichOneof("step") == "progress"

        answer = await refused(rest())
        assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert answer.info.reason == "DEADLINE"
        await until(lambda: idle(server))


async def test_a_caller_who_sends_nothing_is_not_waited_for(models: FakeModels) -> None:
    async with running(models, stream_idle_s=0.2) as server:
        for requests in ([], [start()], [start(check_at_latest_after=DURATION), StreamClassifyRequest(text="a")]):
            call = server.moderation.StreamClassify()
            for request in requests:
                await call.write(request)

            async def rest(call: Any = call) -> None:
                while await call.read() is not grpc.aio.EOF:
                    pass

            answer = await refused(rest())
            assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert answer.info.reason == "STREAM_IDLE"
            await until(lambda: idle(server))


async def test_a_caller_who_reads_nothing_is_not_waited_for(models: FakeModels) -> None:
    """Failure test 6: the transport takes some hundred responses, then the stream ends; others are not held up."""
    async with running(models, stream_idle_s=0.3) as server:
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(server.app.address, options=options) as channel:
            call = Running(server.app, channel).moderation.StreamClassify()
            for request in steps(["word " * 12_000]):
                await call.write(request)
            await asyncio.sleep(0.2)
            assert (await server.moderation.Classify(question("bread"), timeout=5)).verdict == SAFE
            await until(lambda: idle(server), timeout_s=20)

            async def rest() -> None:
                while (response := await call.read()) is not grpc.aio.EOF:
                    assert response.WhichOneof("step") == "progress"

            answer = await refused(rest())
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert answer.info.reason == "SLOW_READER"


# ---------------------------------------------------------------------------------------------------- overload


async def open_streams(server: Running, count: int) -> list[Any]:
    calls = []
    for _ in range(count):
        call = server.moderation.StreamClassify()
        await call.write(start())
        await call.write(StreamClassifyRequest(text="Once upon a time "))
        await told_after(call)
        calls.append(call)
    return calls


def check_busy(answer: Any) -> None:
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.info.reason == "QUEUE_FULL"
    assert answer.retry_after_s > 0
    assert answer.pushback_ms > 0


async def test_open_streams_are_limited(models: FakeModels) -> None:
    """Failure test 1: the number of calls."""
    async with running(models, max_requests=3) as server:
        calls = await open_streams(server, 3)
        check_busy(await refused(stream(server, steps(["a"]))))
        await calls[0].write(FINISH)
        await until(lambda: server.app.gates["guard.v1.ModerationService"].requests == 2)
        assert (await stream(server, steps(["a"]))).result is not None


async def test_memory_of_streams_is_limited(models: FakeModels) -> None:
    """Failure test 18: streams hold KV cache between checks, and Classify has to wait for none of it."""
    async with running(models, kv_cache_mib=1) as server:
        _, classifier = server.app.registry.guard()
        calls = await open_streams(server, 1)
        one = classifier.engine.kv_bytes_in_use
        calls += await open_streams(server, (1 << 20) // one - 1)
        check_busy(await refused(stream(server, steps(["a"]))))
        for call in calls:
            call.cancel()
        await until(lambda: idle(server))


async def test_pieces_are_counted_as_they_arrive(models: FakeModels) -> None:
    async with running(models, max_message_mib=0.05, max_queued_mib=0.05) as server:
        gate = server.app.gates["guard.v1.ModerationService"]
        call = server.moderation.StreamClassify()
        await call.write(start())
        await call.write(StreamClassifyRequest(text="x" * 30_000))
        await until(lambda: gate.bytes > 30_000)
        check_busy(await refused(server.moderation.Classify(question("y" * 25_000))))
        check_busy(await refused(stream(server, steps(["y" * 15_000] * 2))))
        assert 30_000 < gate.bytes < 31_000
        call.cancel()
        await until(lambda: idle(server))


async def test_streams_take_turns_with_others(models: FakeModels) -> None:
    models.step_seconds = 0.01
    async with running(models) as server:
        busy = asyncio.ensure_future(stream(server, steps(["Once upon a time "] * 40)))
        await until(lambda: models.runners["guard"].steps > 2)
        for _ in range(5):
            assert (await server.moderation.Classify(question("bread"), timeout=1)).verdict == SAFE
            assert await server.serving()
        assert not busy.done()
        told = await busy
        assert told.result is not None
        assert told.result.verdict == SAFE


async def test_streams_do_not_mix(server: Running) -> None:
    """Failure test 22: safe and unsafe streams interleave; no verdict crosses over."""
    texts = [f"{index} {STORY}{UNSAFE_MARK if index % 3 == 0 else 'the end'}" for index in range(12)]
    for index, told in enumerate(await asyncio.gather(*(stream(server, steps(list(text))) for text in texts))):
        assert told.result is not None
        assert (told.result.verdict == UNSAFE) == (index % 3 == 0)


# ---------------------------------------------------------------------------------------------------- privacy


async def test_the_callers_id_is_in_log_and_error_and_the_text_is_not(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """Failure test 24."""
    canary = "canary-7d21"
    with caplog.at_level(logging.DEBUG):
        answer = await refused(stream(server, steps([f"{canary} {BROKEN_MARK} "], request_id="r-9")))
        await refused(stream(server, [start(request_id=canary + "!")]))
        await stream(server, steps([canary], request_id="r-10"))
        await until(lambda: idle(server))
    assert answer.info.metadata["request_id"] == "r-9"
    assert canary not in answer.everything
    assert canary not in caplog.text + json.dumps([str(record.__dict__) for record in caplog.records])
    lines = [record.__dict__ for record in caplog.records]
    assert "r-9" in str(lines)
    assert "r-10" in str(lines)
