"""Generation with the guard around it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    ChoiceFormat,
    ModerationOptions,
    ResponseFormat,
)
from guard.v1.moderation_pb2 import (
    ACTION_BLOCK,
    ACTION_REPORT,
    POLICY_ACTION_SHADOW,
    TARGET_PROMPT,
    TARGET_RESPONSE,
    VERDICT_SAFE,
    VERDICT_UNSAFE,
    Policy,
)

from .fakes import UNSAFE_MARK, FakeModels
from .generating import parts_of, prompt, streamed
from .running import Running, message, refused, running, until

BOTH = ModerationOptions(check_input=True, check_output=True)
#: The model can say nothing else: a long safe beginning, then what is unsafe.
BEGINNING = "the quick brown fox jumps. " * 3
FORCED = ResponseFormat(choice=ChoiceFormat(choices=[BEGINNING + UNSAFE_MARK + " x", BEGINNING + UNSAFE_MARK + " y"]))
UNSAFE_TEXT: dict[str, Any] = {
    "response_format": FORCED,
    "max_tokens": 200,
    "moderation": ModerationOptions(check_output=True, check_every_tokens=8),
}


async def test_safe_text_goes_through_whole(server: Running) -> None:
    answer = await server.generation.Generate(prompt(max_tokens=40, moderation=BOTH, request_id="m1"))
    assert answer.text == (await server.generation.Generate(prompt(max_tokens=40))).text
    assert answer.finish_reason == FINISH_REASON_LENGTH
    found = answer.moderation
    assert (found.input.verdict, found.output.verdict) == (VERDICT_SAFE, VERDICT_SAFE)
    assert (found.input.target, found.output.target) == (TARGET_PROMPT, TARGET_RESPONSE)
    assert (found.input.model, found.input.request_id) == ("tiny-guard", "m1")
    parts = await parts_of(server, max_tokens=40, moderation=BOTH)
    assert "".join(part.text for part in parts) == answer.text
    assert sum(part.token_count for part in parts) == 40
    assert parts[-1].moderation.output.verdict == VERDICT_SAFE
    assert not any(part.HasField("moderation") for part in parts[:-1])


async def test_only_what_was_asked_for_is_judged(server: Running) -> None:
    prompt_only, text_only = ModerationOptions(check_input=True), ModerationOptions(check_output=True)
    for options, name, other in ((prompt_only, "input", "output"), (text_only, "output", "input")):
        found = (await server.generation.Generate(prompt(max_tokens=5, moderation=options))).moderation
        assert found.HasField(name) and not found.HasField(other)


async def test_an_unsafe_prompt_is_not_answered(server: Running) -> None:
    fields: dict[str, Any] = {"messages": [message(UNSAFE_MARK)], "max_tokens": 40, "moderation": BOTH}
    answer = await server.generation.Generate(prompt(**fields))
    assert (answer.finish_reason, answer.text) == (FINISH_REASON_CONTENT_FILTER, "")
    assert (answer.moderation.input.verdict, answer.moderation.input.action) == (VERDICT_UNSAFE, ACTION_BLOCK)
    assert [found.code for found in answer.moderation.input.categories if found.flagged] == ["S2"]
    assert not answer.moderation.HasField("output")
    parts = await parts_of(server, **fields)
    assert [part.text for part in parts] == [""] * len(parts)
    assert parts[-1].finish_reason == FINISH_REASON_CONTENT_FILTER
    assert parts[-1].moderation.input.verdict == VERDICT_UNSAFE


async def test_unsafe_text_is_withheld_and_its_safe_beginning_streamed_only(server: Running) -> None:
    parts = await parts_of(server, **UNSAFE_TEXT)
    shown = "".join(part.text for part in parts)
    assert shown and BEGINNING.startswith(shown)
    assert parts[-1].finish_reason == FINISH_REASON_CONTENT_FILTER
    assert parts[-1].moderation.output.action == ACTION_BLOCK
    whole = await server.generation.Generate(prompt(**UNSAFE_TEXT))
    assert (whole.text, whole.finish_reason) == ("", FINISH_REASON_CONTENT_FILTER)
    assert whole.moderation.output.verdict == VERDICT_UNSAFE


async def test_a_shadow_policy_reports_and_lets_through(server: Running) -> None:
    shadow = ModerationOptions(check_output=True, policy=Policy(action=POLICY_ACTION_SHADOW))
    answer = await server.generation.Generate(prompt(**(UNSAFE_TEXT | {"moderation": shadow})))
    assert UNSAFE_MARK in answer.text
    assert (answer.moderation.output.verdict, answer.moderation.output.action) == (VERDICT_UNSAFE, ACTION_REPORT)


async def test_a_threshold_of_the_request_counts(server: Running) -> None:
    lenient = ModerationOptions(check_output=True, policy=Policy(threshold=1.0))
    answer = await server.generation.Generate(prompt(**(UNSAFE_TEXT | {"moderation": lenient})))
    assert UNSAFE_MARK in answer.text
    assert answer.moderation.output.verdict == VERDICT_SAFE


@pytest.mark.parametrize(
    ("options", "more", "field"),
    [
        (ModerationOptions(), {}, "moderation"),
        (ModerationOptions(check_input=True, check_every_tokens=0), {}, "moderation.check_every_tokens"),
        (ModerationOptions(check_input=True, policy_name="nosuch"), {}, "moderation.policy_name"),
        (ModerationOptions(check_input=True, policy=Policy(threshold=2)), {}, "moderation.policy.threshold"),
        (
            ModerationOptions(check_output=True, policy=Policy(excluded_categories=["S77"])),
            {},
            "moderation.policy.excluded_categories",
        ),
        (BOTH, {"logprobs": True}, "logprobs"),
    ],
)
async def test_what_is_wrong_is_refused_by_field(
    server: Running, options: ModerationOptions, more: dict[str, Any], field: str
) -> None:
    for call in (
        server.generation.Generate(prompt(moderation=options, **more)),
        parts_of(server, moderation=options, **more),
    ):
        answer = await refused(call)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(answer.fields) == [field]


async def test_without_a_guard_nothing_is_generated(models: FakeModels) -> None:
    async with running(models, guard=None) as server:
        answer = await refused(server.generation.Generate(prompt(moderation=BOTH)))
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
        assert (await server.generation.Generate(prompt(max_tokens=3))).text


async def test_cancelling_stops_both_models(models: FakeModels) -> None:
    models.step_seconds = 0.01
    async with running(models) as server:
        _, generator = server.app.registry.instruct()
        _, classifier = server.app.registry.guard()
        call = server.generation.StreamGenerate(streamed(max_tokens=2000, moderation=BOTH))
        for _ in range(3):
            assert await call.read()
        call.cancel()
        await until(lambda: generator.engine.jobs == classifier.engine.jobs == 0)
        assert generator.engine.kv_bytes_in_use == classifier.engine.kv_bytes_in_use == 0
