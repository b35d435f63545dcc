"""Generation and tagging with both clients against the server, as a caller has them."""

from __future__ import annotations

import asyncio
import json

import pytest

from guard.client import (
    AsyncGuardClient,
    GenerationOptions,
    GenerationResult,
    GuardClient,
    ModerationOptions,
    RequestRejectedError,
    TagResult,
)
from guard.conversation import Message, Role
from guard.generation import ChoiceFormat, JsonFormat, Tool, ToolChoice, ToolMode
from guard.verdict import Verdict

from .fakes import UNSAFE_MARK
from .running import Running

pytest.importorskip("llguidance")

COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
PAINT = Tool("paint", "Paints the wall.", COLOUR | {"additionalProperties": False})
CASES = {
    "sampled": GenerationOptions(temperature=1.5, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=4, max_tokens=20),
    "choices": GenerationOptions(temperature=2.0, choices=3, seed=1, max_tokens=8, logprobs=2),
    "plain": GenerationOptions(plain=True, temperature=0, max_tokens=8),
    "json": GenerationOptions(output_format=JsonFormat(PAINT.parameters), temperature=0),
    "choice": GenerationOptions(output_format=ChoiceFormat(("yes", "no")), temperature=0),
    "call": GenerationOptions(tools=(PAINT,), tool_choice=ToolChoice(ToolMode.REQUIRED), temperature=0),
    "guarded": GenerationOptions(moderation=ModerationOptions(), temperature=0, max_tokens=30),
}


def told(result: GenerationResult) -> tuple[object, ...]:
    """What does not differ from one answer to the next: all but ids, times and what the cache had."""
    calls = [(call.name, call.arguments) for call in result.tool_calls]
    return result.text, result.finish_reason, calls, result.logprobs, result.further_choices


@pytest.mark.parametrize("name", CASES)
async def test_both_clients_get_the_same_whole_and_streamed(server: Running, name: str) -> None:
    options = CASES[name]

    def blocking() -> list[GenerationResult]:
        with GuardClient(server.app.address, timeout_s=20) as client:
            return [client.generate("hi", options), client.stream_generate("hi", options).result()]

    first, *others = await asyncio.to_thread(blocking)
    async with AsyncGuardClient(server.app.address, timeout_s=20) as client:
        others.append(await client.generate("hi", options))
        stream = client.stream_generate("hi", options)
        deltas = [delta async for delta in stream]
        others.append(await stream.result())
    assert [told(other) for other in others] == [told(first)] * 3
    assert "".join(delta.text for delta in deltas if delta.choice == 0) == first.text
    assert len(first.further_choices) == (options.choices or 1) - 1
    assert first.usage.completion_tokens > 0
    if first.moderation is not None:
        assert first.moderation.input is not None and first.moderation.input.verdict is Verdict.SAFE


async def test_a_conversation_with_a_tool(server: Running) -> None:
    options = CASES["call"]
    async with AsyncGuardClient(server.app.address, timeout_s=20) as client:
        question = Message(Role.USER, "paint it")
        calls = (await client.generate([question], options)).tool_calls
        assert json.loads(calls[0].arguments)["colour"] in ("red", "blue")
        results = [Message(Role.TOOL, "done", tool_call_id=call.id) for call in calls]
        after = await client.generate(
            [question, Message(Role.ASSISTANT, "", calls), *results], GenerationOptions(tools=(PAINT,), max_tokens=5)
        )
        assert after.text
        with pytest.raises(RequestRejectedError) as caught:
            await client.generate([question, Message(Role.TOOL, "done", tool_call_id="nosuch")], options)
        assert [each.field for each in caught.value.field_violations] == ["messages[1].tool_call_id"]


async def test_an_unsafe_prompt_is_withheld(server: Running) -> None:
    async with AsyncGuardClient(server.app.address, timeout_s=20) as client:
        result = await client.generate(UNSAFE_MARK, CASES["guarded"])
    assert (result.text, result.finish_reason) == ("", "content_filter")
    assert result.moderation is not None and result.moderation.input is not None
    assert result.moderation.input.verdict is Verdict.UNSAFE


async def test_tag(server: Running) -> None:
    def blocking() -> TagResult:
        with GuardClient(server.app.address, timeout_s=20) as client:
            return client.tag("Buy now!", ["news", "spam"])

    async with AsyncGuardClient(server.app.address, timeout_s=20) as client:
        other = await client.tag("Buy now!", ["news", "spam"])
    result = await asyncio.to_thread(blocking)
    assert result.label in ("news", "spam")
    assert [score.name for score in result.scores] == [score.name for score in other.scores]
