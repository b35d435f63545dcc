"""Generate and StreamGenerate."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import grpc
import pytest

from guard.v1 import generation_pb2
from guard.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP_SEQUENCE,
    FINISH_REASON_UNSPECIFIED,
    GenerateRequest,
    StreamGenerateRequest,
)

from .fakes import LETTERS, FakeModels
from .generating import parts_of, prompt, streamed
from .process import resident_mib
from .running import ASSISTANT, SYSTEM, Running, message, question, refused, running, until


async def test_generate(server: Running) -> None:
    answer = await server.generation.Generate(prompt(max_tokens=20, request_id="a.1"))
    assert answer.request_id == "a.1"
    assert answer.model == "tiny-instruct"
    assert len(answer.text) == 20
    assert answer.text in LETTERS * 4
    assert answer.finish_reason == FINISH_REASON_LENGTH
    assert answer.usage.completion_tokens == 20
    assert answer.usage.prompt_tokens > 5
    first, total = answer.timings.first_token.ToNanoseconds(), answer.timings.total.ToNanoseconds()
    assert 0 < first <= total


async def test_stream_has_ids_first_then_text_then_the_end(server: Running) -> None:
    whole = await server.generation.Generate(prompt(max_tokens=50))
    parts = await parts_of(server, max_tokens=50, request_id="s")
    first, *middle, last = parts
    assert (first.request_id, first.model, first.text) == ("s", "tiny-instruct", "")
    assert all(part.text and part.finish_reason == FINISH_REASON_UNSPECIFIED for part in middle)
    assert "".join(part.text for part in parts) == whole.text
    assert sum(part.token_count for part in parts) == 50
    assert last.finish_reason == FINISH_REASON_LENGTH
    assert (last.usage.completion_tokens, last.text) == (50, "")
    assert last.timings.first_token.ToNanoseconds() > 0


async def test_stream_sends_text_before_the_end(models: FakeModels) -> None:
    models.step_seconds = 0.02
    async with running(models) as server:
        arrivals = []
        async for part in server.generation.StreamGenerate(streamed(max_tokens=30)):
            arrivals.append((time.monotonic(), part))
        assert len(arrivals) > 10
        assert arrivals[-1][0] - arrivals[1][0] > 0.3


async def test_stop_strings_end_the_text_and_are_not_part_of_it(server: Running) -> None:
    answer = await server.generation.Generate(prompt(max_tokens=60, stop=["efg"]))
    assert answer.finish_reason == FINISH_REASON_STOP_SEQUENCE
    assert answer.text.endswith("d")
    assert "efg" not in answer.text


async def test_defaults_of_the_server(models: FakeModels) -> None:
    async with running(models, default_max_tokens=7, max_tokens=9) as server:
        assert (await server.generation.Generate(prompt())).usage.completion_tokens == 7
        answer = await refused(server.generation.Generate(prompt(max_tokens=10)))
        assert answer.fields == {"max_tokens": "expected 1 to 9"}


async def test_zero_is_a_value_not_an_absence(server: Running) -> None:
    for name, zero in (("max_tokens", 0), ("top_p", 0.0)):
        answer = await refused(server.generation.Generate(prompt(**{name: zero})))
        assert list(answer.fields) == [name]
    same = [await server.generation.Generate(prompt(max_tokens=5, seed=0, top_k=0, temperature=1.0)) for _ in range(2)]
    assert same[0].text == same[1].text


async def test_logprobs_come_with_each_token_and_alternatives(server: Running) -> None:
    answer = await server.generation.Generate(prompt(max_tokens=5, logprobs=True, top_logprobs=2))
    assert "".join(token.text for token in answer.logprobs) == answer.text
    for token in answer.logprobs:
        assert token.logprob == pytest.approx(0.0, abs=1e-4)  # the model is sure
        assert [token.top[0].token_id, token.top[0].logprob] == [token.token_id, token.logprob]
        assert len(token.top) == 2
        assert token.top[1].logprob == pytest.approx(-40, abs=0.1)
    bare = await server.generation.Generate(prompt(max_tokens=5, logprobs=True))
    assert [len(token.top) for token in bare.logprobs] == [0] * 5
    assert not (await server.generation.Generate(prompt(max_tokens=5))).logprobs


async def test_streamed_logprobs_are_those_of_the_whole(server: Running) -> None:
    fields: dict[str, Any] = {"max_tokens": 60, "stop": ["efg"], "logprobs": True, "top_logprobs": 1}
    whole = await server.generation.Generate(prompt(**fields))
    parts = await parts_of(server, **fields)
    assert [token for part in parts for token in part.logprobs] == list(whole.logprobs)
    assert len(whole.logprobs) == whole.usage.completion_tokens


async def test_choices_are_each_drawn_with_the_next_seed(server: Running) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 2.0, "logit_bias": dict.fromkeys(range(32, 58), 40.0)}
    answer = await server.generation.Generate(prompt(choices=3, seed=5, logprobs=True, **fields))
    texts = [answer.text, *(choice.text for choice in answer.further_choices)]
    alone = [await server.generation.Generate(prompt(seed=5 + index, **fields)) for index in range(3)]
    assert texts == [one.text for one in alone]
    assert len(set(texts)) == 3
    assert [choice.index for choice in answer.further_choices] == [1, 2]
    assert {choice.finish_reason for choice in answer.further_choices} == {FINISH_REASON_LENGTH}
    assert [len(choice.logprobs) for choice in answer.further_choices] == [12, 12]
    assert answer.usage.completion_tokens == 36

    parts = await parts_of(server, choices=3, seed=5, **fields)
    for index, text in enumerate(texts):
        mine = [part for part in parts[1:] if part.choice_index == index]
        assert "".join(part.text for part in mine) == text
        assert [part.finish_reason for part in mine if part.finish_reason] == [FINISH_REASON_LENGTH]
        assert sum(part.token_count for part in mine) == 12
    assert [part.HasField("usage") for part in parts].index(True) == len(parts) - 1
    assert parts[-1].usage.completion_tokens == 36


async def test_biases_and_penalties_reach_the_sampler(server: Running) -> None:
    letter = ord("x") - ord("!")  # of the byte tokenizer, whose ids follow the bytes that can be seen
    forced = await server.generation.Generate(prompt(max_tokens=3, logit_bias={letter: 100.0}))
    assert forced.text == "xxx"
    fields: dict[str, Any] = {"max_tokens": 3, "logit_bias": {letter: 61.0, letter + 1: 60.5}}
    assert (await server.generation.Generate(prompt(presence_penalty=2.0, **fields))).text == "xyx"
    assert (await server.generation.Generate(prompt(frequency_penalty=0.3, **fields))).text == "xxy"
    assert (await server.generation.Generate(prompt(repetition_penalty=1.5, **fields))).text[:2] == "xy"
    sure = prompt(temperature=2.0, min_p=0.9, seed=1, **fields)
    assert (await server.generation.Generate(sure)).text == "xxx"


async def test_a_plain_prompt_has_no_template_around_it(server: Running) -> None:
    answer = await server.generation.Generate(prompt(prompt="abcde", messages=[], max_tokens=4))
    assert answer.usage.prompt_tokens == 5
    assert len(answer.text) == 4


async def test_speed_and_prompt_lookup_show_in_the_answer(server: Running) -> None:
    with_lookup = await server.generation.Generate(prompt(max_tokens=100, prompt_lookup=True))
    assert 0 < with_lookup.usage.accepted_tokens <= with_lookup.usage.drafted_tokens
    without = await server.generation.Generate(prompt(max_tokens=100))
    assert (without.usage.drafted_tokens, without.usage.accepted_tokens) == (0, 0)
    assert without.text == with_lookup.text
    assert without.tokens_per_second > 0
    assert (await server.generation.Generate(prompt(max_tokens=1))).tokens_per_second == 0
    last = (await parts_of(server, max_tokens=100, prompt_lookup=True))[-1]
    assert last.tokens_per_second > 0
    assert last.usage.accepted_tokens > 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [message(" ")]}, "messages[0].content"),
        ({"messages": [message("a"), message("s", SYSTEM)]}, "messages[1].role"),
        ({"messages": [message("a"), message("b", ASSISTANT)]}, "messages[1].role"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -5}, "seed"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["ok", "x" * 257]}, "stop[1]"),
        ({"request_id": "a b"}, "request_id"),
        ({"messages": [message("x" * 5000)]}, "messages"),
        ({"max_tokens": 4090}, "max_tokens"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": float("nan")}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {3: 101.0}}, "logit_bias[3]"),
        ({"logit_bias": {-3: 1.0}}, "logit_bias[-3]"),
        ({"logit_bias": {512: 1.0}}, "logit_bias[512]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"choices": 0}, "choices"),
        ({"choices": 9, "temperature": 1.0}, "choices"),
        ({"choices": 2}, "choices"),
        ({"prompt": "go on"}, "prompt"),
        ({"prompt": "", "messages": []}, "prompt"),
        ({"prompt": "x" * 5000, "messages": []}, "prompt"),
        ({"date": "30 Nov 2026"}, "date"),
        ({"date": "2026-13-01"}, "date"),
        ({"date": "20261130"}, "date"),
    ],
)
async def test_bad_input_is_refused_by_field_on_both(server: Running, fields: dict[str, Any], field: str) -> None:
    for call in (server.generation.Generate(prompt(**fields)), parts_of(server, **fields)):
        answer = await refused(call)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(answer.fields) == [field]


async def test_no_instruct_model(models: FakeModels) -> None:
    async with running(models, instruct=None) as server:
        answer = await refused(server.generation.Generate(prompt()))
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
        assert answer.info.reason == "MODEL_NOT_LOADED"
        assert (await server.moderation.Classify(question("a"))).verdict


async def test_both_requests_have_the_same_fields() -> None:
    one, other = (
        [
            (field.number, field.name, field.type, field.is_repeated, field.has_presence)
            for field in kind.DESCRIPTOR.fields
        ]
        for kind in (GenerateRequest, StreamGenerateRequest)
    )
    assert one == other


async def test_responses_share_their_numbers() -> None:
    whole = {field.name: field.number for field in generation_pb2.GenerateResponse.DESCRIPTOR.fields}
    part = {field.name: field.number for field in generation_pb2.StreamGenerateResponse.DESCRIPTOR.fields}
    assert whole.keys() - part.keys() == {"further_choices"}
    assert all(part[name] == number for name, number in whole.items() if name in part)
    assert len({*whole.values(), *part.values()}) == len({*whole, *part})


async def test_cancel_stops_the_engine_and_frees_its_memory(models: FakeModels) -> None:
    """Failure test 4."""
    models.step_seconds = 0.01
    async with running(models) as server:
        _, generator = server.app.registry.instruct()
        call = server.generation.StreamGenerate(streamed(max_tokens=2000))
        for _ in range(4):
            assert await call.read()
        assert generator.engine.jobs == 1
        call.cancel()
        await until(lambda: generator.engine.jobs == 0)
        assert generator.engine.kv_bytes_in_use == 0
        assert models.runners["instruct"].steps < 100
        assert all(gate.requests == gate.bytes == 0 for gate in server.app.gates.values())


async def test_a_thousand_starts_and_cancels_leave_nothing(server: Running) -> None:
    """Failure test 5: some at once, some a moment later, one in three when the server has begun to write."""
    written = 0

    async def start_and_cancel(index: int) -> None:
        nonlocal written
        call = server.generation.StreamGenerate(streamed(max_tokens=100))
        await asyncio.sleep((0, 0.003)[index % 2])
        if index % 3 == 0:
            await call.read()
            written += 1
        call.cancel()

    async def rounds(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(start_and_cancel(index) for index in range(50)))
        await until(lambda: generator.engine.jobs == 0 and generator.engine.kv_bytes_in_use == 0)
        await until(lambda: all(gate.requests == gate.bytes == 0 for gate in server.app.gates.values()))

    _, generator = server.app.registry.instruct()
    await rounds(5)
    tasks, resident = len(asyncio.all_tasks()), resident_mib(os.getpid())
    await rounds(20)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert resident_mib(os.getpid()) - resident < 32
    assert written == 25 * 17  # these were read from before they were cancelled
    assert (await server.generation.Generate(prompt(max_tokens=3))).text


async def test_a_reader_that_stalls_is_cut_off_and_others_are_not(models: FakeModels) -> None:
    """Failure test 6: the transport takes some hundred messages before a write blocks; then text waits, but not for
    long.
    """
    async with running(models, max_unsent_tokens=64, stream_idle_s=0.3) as server:
        _, generator = server.app.registry.instruct()
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(server.app.address, options=options) as channel:
            stub = Running(server.app, channel).generation
            call = stub.StreamGenerate(streamed(max_tokens=4000))
            assert (await call.read()).model
            await asyncio.sleep(0.2)
            quick = await server.generation.Generate(prompt(max_tokens=5))  # somebody else, meanwhile
            assert quick.usage.completion_tokens == 5
            await until(lambda: generator.engine.jobs == 0, timeout_s=10)
            steps = models.runners["instruct"].steps

            async def rest() -> None:
                while await call.read() is not grpc.aio.EOF:
                    pass

            answer = await refused(rest())
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert answer.info.reason == "SLOW_READER"
            assert steps < 4000
