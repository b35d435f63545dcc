"""BatchClassify: each item has its own outcome."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from guard.v1.moderation_pb2 import VERDICT_SAFE, VERDICT_UNSAFE, BatchClassifyRequest, ClassifyRequest, Policy

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import Running, question, refused, running, until


async def test_outcomes_are_in_order_and_apart(server: Running) -> None:
    items = [
        question("bread"),
        question(UNSAFE_MARK, request_id="mine"),
        ClassifyRequest(),
        question(BROKEN_MARK),
        question("x", policy=Policy(threshold=2.0)),
        question("x", request_id="not an id"),
    ]
    answer = await server.moderation.BatchClassify(BatchClassifyRequest(request_id="batch", requests=items))
    assert answer.request_id == "batch"
    safe, unsafe, empty, broken, wrong, unnamed = answer.results
    assert (safe.response.verdict, safe.response.request_id) == (VERDICT_SAFE, "batch.0")
    assert (unsafe.response.verdict, unsafe.response.request_id) == (VERDICT_UNSAFE, "mine")
    for failed, code, reason, field in (
        (empty, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", "messages"),
        (broken, grpc.StatusCode.INTERNAL, "MODEL_OUTPUT_UNREADABLE", None),
        (wrong, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", "policy.threshold"),
        (unnamed, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", "request_id"),
    ):
        assert failed.WhichOneof("outcome") == "error"
        assert failed.error.code == code.value[0]
        assert failed.error.reason == reason
        assert [violation.field for violation in failed.error.field_violations] == ([field] if field else [])
    assert [item.error.request_id for item in (empty, broken, unnamed)] == ["batch.2", "batch.3", "batch.5"]
    assert answer.timings.total.ToNanoseconds() > 0


async def test_many_items_are_each_judged_for_themselves(server: Running) -> None:
    """Failure test 22: a batch that is larger than the engine's queue is served whole, and nothing crosses over."""
    items = [question(f"{UNSAFE_MARK} {index}" if index % 3 == 0 else f"bread {index}") for index in range(1024)]
    answer = await server.moderation.BatchClassify(BatchClassifyRequest(requests=items))
    verdicts = [result.response.verdict for result in answer.results]
    assert verdicts == [VERDICT_UNSAFE if index % 3 == 0 else VERDICT_SAFE for index in range(1024)]


async def test_number_of_items(server: Running) -> None:
    for count in (0, 1025):
        items = [question("x")] * count
        answer = await refused(server.moderation.BatchClassify(BatchClassifyRequest(requests=items)))
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert answer.fields == {"requests": f"{count} items, expected 1 to 1024"}


async def test_alone_and_in_a_mixed_batch_and_again_the_same(server: Running) -> None:
    texts = ["bread", f"how do I {UNSAFE_MARK} it", "cheese " * 100]
    alone = [await server.moderation.Classify(question(text)) for text in texts]
    mixed = await server.moderation.BatchClassify(BatchClassifyRequest(requests=[question(text) for text in texts]))
    for one, result in zip(alone, mixed.results, strict=True):
        assert one.verdict == result.response.verdict
        assert abs(one.unsafe_score - result.response.unsafe_score) < 1e-3


async def test_cancelling_a_batch_stops_its_items(models: FakeModels) -> None:
    models.step_seconds = 0.02
    async with running(models) as server:
        call = server.moderation.BatchClassify(BatchClassifyRequest(requests=[question("x")] * 200))
        started = asyncio.ensure_future(call)
        await until(lambda: models.runners["guard"].steps > 0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await started
        assert await server.moderation.Classify(question("next"), timeout=3)  # not behind 200 others
        assert models.runners["guard"].steps < 20
