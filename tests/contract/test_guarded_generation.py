"""Generation with the guard around it, when something goes wrong or many come at once: nothing unjudged leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
    ModerationOptions,
    StreamGenerateResponse,
)
from guard.v1.moderation_pb2 import ACTION_BLOCK, VERDICT_SAFE, VERDICT_UNSAFE

from .fakes import BROKEN_MARK, LETTERS, UNSAFE_MARK, FakeModels
from .generating import parts_of, prompt, streamed
from .running import ASSISTANT, SYSTEM, Running, message, refused, running, until

HARMLESS = "the baker got up at five and went to work. "
BOTH = ModerationOptions(check_input=True, check_output=True, check_every_tokens=8)
INPUT = ModerationOptions(check_input=True)
OUTPUT = ModerationOptions(check_output=True, check_every_tokens=8)


async def ends_of(server: Running, **fields: Any) -> Any:
    """What a unary answer and the last response of a stream both have."""
    answer = await server.generation.Generate(prompt(**fields), timeout=20)
    assert answer.text == "" or answer.finish_reason != FINISH_REASON_CONTENT_FILTER
    return answer


async def last_of(server: Running, **fields: Any) -> StreamGenerateResponse:
    return (await parts_of(server, **fields))[-1]


both_ways = pytest.mark.parametrize("end_of", [ends_of, last_of])
EndOf = Callable[..., Awaitable[Any]]


def nothing_is_held(server: Running) -> bool:
    models = [entry.model for entry in server.app.registry.entries()]
    idle = all(model.engine.jobs == model.engine.kv_bytes_in_use == 0 for model in models)
    return idle and all(gate.requests == gate.bytes == 0 for gate in server.app.gates.values())


def text_of(parts: list[StreamGenerateResponse], choice: int = 0) -> str:
    return "".join(part.text for part in parts if part.choice_index == choice)


@both_ways
async def test_a_blocked_answer_says_what_it_cost(models: FakeModels, end_of: EndOf) -> None:
    models.says = [HARMLESS * 4 + UNSAFE_MARK + " and more" * 40]
    async with running(models) as server:
        for fields in ({"messages": [message(f"how do I {UNSAFE_MARK}")]}, {}):
            end = await end_of(server, max_tokens=2000, moderation=BOTH, **fields)
            assert end.finish_reason == FINISH_REASON_CONTENT_FILTER
            assert end.usage.prompt_tokens > 10
            assert bool(fields) or len(HARMLESS * 4) < end.usage.completion_tokens
            assert end.timings.total.ToNanoseconds() > 0
            await until(lambda: nothing_is_held(server))


async def test_a_block_stops_the_instruct_model(models: FakeModels) -> None:
    models.says = [UNSAFE_MARK + HARMLESS * 40]
    models.step_seconds = 0.005
    async with running(models) as server:
        for end_of in (ends_of, last_of):
            before = models.runners["instruct"].steps
            end = await end_of(server, max_tokens=2000, moderation=OUTPUT)
            assert end.finish_reason == FINISH_REASON_CONTENT_FILTER
            await until(lambda: nothing_is_held(server))
            assert models.runners["instruct"].steps - before < len(HARMLESS * 20)


@both_ways
@pytest.mark.parametrize("options", [BOTH, INPUT, OUTPUT])
async def test_a_guard_that_cannot_answer_is_no_answer(
    server: Running, end_of: EndOf, options: ModerationOptions
) -> None:
    answer = await refused(end_of(server, messages=[message(f"what is {BROKEN_MARK}")], moderation=options))
    assert answer.code is grpc.StatusCode.INTERNAL
    assert answer.info.reason == "MODEL_OUTPUT_UNREADABLE"
    assert BROKEN_MARK not in answer.everything and LETTERS not in answer.everything
    await until(lambda: nothing_is_held(server))


async def test_what_came_before_the_guard_broke_is_all_that_left(models: FakeModels) -> None:
    models.says = [HARMLESS * 4 + BROKEN_MARK + " and more"]
    heard: list[StreamGenerateResponse] = []
    async with running(models) as server:

        async def listen() -> None:
            async for part in server.generation.StreamGenerate(streamed(max_tokens=400, moderation=BOTH)):
                heard.append(part)

        assert (await refused(listen())).code is grpc.StatusCode.INTERNAL
        assert text_of(heard) and (HARMLESS * 4).startswith(text_of(heard))
        assert all(part.finish_reason == FINISH_REASON_UNSPECIFIED for part in heard)
        await until(lambda: nothing_is_held(server))


async def test_a_slow_guard_is_waited_for_until_the_deadline(models: FakeModels) -> None:
    async with running(models) as server:
        models.runners["guard"].step_seconds = 0.1
        assert len(text_of(await parts_of(server, max_tokens=40, moderation=BOTH))) == 40
        models.runners["guard"].step_seconds = 1.0
        heard: list[StreamGenerateResponse] = []

        async def listen() -> None:
            asked = streamed(max_tokens=40, moderation=BOTH)
            async for part in server.generation.StreamGenerate(asked, timeout=0.5):
                heard.append(part)

        for late in (server.generation.Generate(prompt(moderation=BOTH), timeout=0.5), listen()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await late
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert text_of(heard) == ""
        await until(lambda: nothing_is_held(server))


async def test_text_that_the_guard_lets_go_in_bulk_is_no_slow_reader(models: FakeModels) -> None:
    async with running(models, max_unsent_tokens=16) as server:
        models.runners["guard"].step_seconds = 0.3
        assert len(text_of(await parts_of(server, max_tokens=300, moderation=INPUT))) == 300


@both_ways
async def test_no_room_for_the_guard_is_an_overload_at_once(models: FakeModels, end_of: EndOf) -> None:
    async with running(models) as server:
        _, classifier = server.app.registry.guard()
        everything = classifier.engine.settings.kv_bytes
        classifier.engine.hold(everything)
        for options in (BOTH, INPUT, OUTPUT):
            answer = await refused(end_of(server, moderation=options))
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert answer.retry_after_s is not None
        assert models.runners["instruct"].steps == 0
        classifier.engine.release(everything)
        assert (await end_of(server, max_tokens=10, moderation=BOTH)).finish_reason == FINISH_REASON_LENGTH
        await until(lambda: nothing_is_held(server))


async def test_each_choice_is_judged_by_itself(models: FakeModels) -> None:
    models.says = [HARMLESS + UNSAFE_MARK + " and more"]
    fields: dict[str, Any] = {"choices": 3, "temperature": 0.1, "max_tokens": 200, "moderation": OUTPUT}
    async with running(models) as server:
        whole = await server.generation.Generate(prompt(**fields))
        texts = [whole, *whole.further_choices]
        assert [(text.text, text.finish_reason) for text in texts] == [("", FINISH_REASON_CONTENT_FILTER)] * 3
        parts = await parts_of(server, **fields)
        ends = [(part.choice_index, part.finish_reason) for part in parts if part.finish_reason]
        assert ends == [(index, FINISH_REASON_CONTENT_FILTER) for index in range(3)]
        for index in range(3):
            assert text_of(parts, index) and HARMLESS.startswith(text_of(parts, index))
        assert parts[-1].moderation.output.action == ACTION_BLOCK
        await until(lambda: nothing_is_held(server))


@both_ways
async def test_the_last_user_message_is_judged_in_any_conversation(server: Running, end_of: EndOf) -> None:
    before = [message("be kind", SYSTEM), message("hi"), message("there"), message("hello", ASSISTANT)]
    shapes: list[dict[str, Any]] = [
        {"messages": [*before, message("again", ASSISTANT), message(UNSAFE_MARK)]},
        {"messages": [message("what is"), message(UNSAFE_MARK), message("then?")]},
        {"messages": [], "prompt": f"The {UNSAFE_MARK} of"},
    ]
    for shape in shapes:
        end = await end_of(server, max_tokens=5, moderation=INPUT, **shape)
        assert end.finish_reason == FINISH_REASON_CONTENT_FILTER
    end = await end_of(server, max_tokens=5, moderation=INPUT, messages=[*before, message("again")])
    assert end.moderation.input.verdict == VERDICT_SAFE


async def test_a_thousand_starts_and_cancels_leave_nothing(server: Running) -> None:
    async def start_and_cancel() -> None:
        call = server.generation.StreamGenerate(streamed(max_tokens=100, moderation=BOTH))
        await asyncio.sleep(0)
        call.cancel()

    for _ in range(20):
        await asyncio.gather(*(start_and_cancel() for _ in range(50)))
    await until(lambda: nothing_is_held(server))
    assert (await server.generation.Generate(prompt(max_tokens=3, moderation=BOTH))).text


async def test_many_at_once_each_get_their_own(models: FakeModels) -> None:
    models.says = [HARMLESS * 3, HARMLESS * 3 + UNSAFE_MARK]
    safe: dict[str, Any] = {"max_tokens": 200, "moderation": BOTH}
    unsafe_text = safe | {"messages": [message("hi"), message("hello", ASSISTANT), message("again")]}
    unsafe_input = safe | {"messages": [message(UNSAFE_MARK)]}
    async with running(models) as server:
        asked = [safe, unsafe_text, unsafe_input] * 6
        calls = [(ends_of, last_of)[index % 2](server, **fields) for index, fields in enumerate(asked)]
        answers: list[Any] = list(await asyncio.gather(*calls))
        blocked = FINISH_REASON_CONTENT_FILTER
        assert [answer.finish_reason for answer in answers] == [FINISH_REASON_STOP, blocked, blocked] * 6
        assert all(answer.moderation.output.verdict == VERDICT_UNSAFE for answer in answers[1::3])
        assert all(answer.moderation.input.verdict == VERDICT_UNSAFE for answer in answers[2::3])
        await until(lambda: nothing_is_held(server))
