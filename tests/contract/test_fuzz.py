"""Random and mangled requests: each gets an answer or is told that it is wrong; never INTERNAL, never UNKNOWN."""

from __future__ import annotations

import random
from collections import Counter

import grpc
import pytest

from guard.v1.generation_pb2 import GenerateRequest, Label, ModerationOptions, TagRequest, Tool
from guard.v1.moderation_pb2 import BatchClassifyRequest, CustomCategory, Policy
from tests.fuzz.mutations import mangled

from .running import Running, message, question

ALLOWED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION}
POLICY = Policy(
    threshold=0.5,
    category_thresholds={"S1": 0.4},
    excluded_categories=["S10"],
    custom_categories=[CustomCategory(code="S2", name="Theft", description="Taking things.")],
)
TOOL = Tool(name="f", description="Does.", parameters_json_schema='{"type": "object", "properties": {"x": {}}}')
BOTH = ModerationOptions(check_input=True, check_output=True)
GENERATE = "/guard.v1.GenerationService/Generate"
SEEDS = {
    "/guard.v1.ModerationService/Classify": question("hello", "there", "you", request_id="id", policy=POLICY, mode=1),
    "/guard.v1.ModerationService/BatchClassify": BatchClassifyRequest(requests=[question("a"), question("b", "c")]),
    GENERATE: GenerateRequest(
        messages=[message("hi")], max_tokens=3, temperature=0.5, top_p=0.9, top_k=5, seed=1, stop=["x"]
    ),
    # The part after "#" only tells the seeds of one method apart.
    f"{GENERATE}#sampling": GenerateRequest(
        prompt="Once",
        max_tokens=3,
        temperature=1.0,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={5: 1.0, 7: -1.0},
        logprobs=True,
        top_logprobs=2,
        choices=2,
        prompt_lookup=False,
    ),
    "/guard.v1.GenerationService/Tag": TagRequest(
        text="Buy now!", labels=[Label(name="news"), Label(name="spam", description="Ads.")], instruction="Sort."
    ),
    f"{GENERATE}#forms": GenerateRequest(
        messages=[message("hi")], max_tokens=3, date="2026-11-30", tools=[TOOL], moderation=BOTH
    ),
}


@pytest.mark.parametrize("method", SEEDS)
async def test_mangled_requests(server: Running, method: str) -> None:
    call = server.channel.unary_unary(method.partition("#")[0])
    outcomes: Counter[str] = Counter()
    for seed in range(400):
        chance = random.Random(seed)
        data = mangled(SEEDS[method].SerializeToString(), chance)
        try:
            await call(data, timeout=10)
            outcomes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            assert error.code() in ALLOWED, f"seed {seed}: {error}"
            outcomes[error.code().name] += 1
    assert outcomes["OK"] > 5, outcomes
    assert outcomes["INVALID_ARGUMENT"] > 50, outcomes
