from __future__ import annotations

from collections.abc import Iterator

import pytest

from guard.classifier import Classifier
from guard.conversation import Message, Role, Target, ToolCall
from guard.errors import ModelOutputError
from guard.generation import Choice, Delta, FinishReason
from guard.holdback import HeldChoice, spoken
from guard.policy import Policy
from guard.streaming import StreamTask
from guard.verdict import Verdict

from .guarded import LIMITS, STORY, until, words
from .scripted import BAD_WORD, started

QUESTION = Message(Role.USER, "Tell me a story")


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    with started(tmp_path_factory.mktemp("guard") / "bundle", limits=LIMITS) as (classifier, _):
        yield classifier


def written(
    guard: Classifier, deltas: list[Delta], calls: tuple[ToolCall, ...] = ()
) -> tuple[HeldChoice, Choice, list[Delta]]:
    """A choice that was written and judged to its end, and what was released."""
    released: list[Delta] = []
    session = guard.stream(StreamTask((QUESTION,), Target.RESPONSE, Policy(), every_tokens=8))
    held = HeldChoice(2, session, released.append, None)
    try:
        for delta in deltas:
            held.add(delta)
        text = "".join(delta.text for delta in deltas)
        return held, held.finish(Choice(text, FinishReason.STOP, len(deltas) + 1, calls)), released
    finally:
        held.close()


def test_text_is_released_check_by_check(guard: Classifier) -> None:
    held, choice, released = written(guard, words(STORY))
    assert choice == Choice(STORY + " ", FinishReason.STOP, len(STORY.split()) + 1)
    assert "".join(delta.text for delta in released) == choice.text
    assert len(released) > 4 and {delta.choice for delta in released} == {2}
    assert held.judgement is not None and held.judgement.passes == len(released) - 1  # less the last white space


def test_a_token_counts_when_all_of_its_text_has_left(guard: Classifier) -> None:
    _, _, released = written(guard, [Delta("once upon a time there was", 6), Delta(" a baker", 8)])
    told = 0
    for delta in released:
        told += len(delta.text)
        assert delta.completion_tokens == (0 if told < 26 else 6 if told < 34 else 8)
    assert [delta.completion_tokens for delta in released][:: len(released) - 1] == [0, 8]


def test_after_a_block_nothing_is_released_nor_judged(guard: Classifier) -> None:
    held, choice, released = written(guard, words(f"all is well and then {BAD_WORD} things are said and more"))
    assert held.blocked and choice.finish_reason is FinishReason.CONTENT_FILTER
    assert "".join(delta.text for delta in released) == choice.text
    assert choice.text and "all is well and then ".startswith(choice.text)
    assert held.judgement is not None and held.judgement.verdict is Verdict.UNSAFE
    assert held.judgement.window.end < 40


def test_a_block_gives_the_memory_back_at_once(guard: Classifier) -> None:
    session = guard.stream(StreamTask((QUESTION,), Target.RESPONSE, Policy(), every_tokens=8))
    assert guard.engine.kv_bytes_in_use > 0
    HeldChoice(0, session, lambda delta: None, None).add(Delta(f"{BAD_WORD} things", 2))
    until(lambda: guard.engine.kv_bytes_in_use == 0)


@pytest.mark.parametrize(
    ("arguments", "blocked"),
    [
        ('{"what": "bread", "much": [1, {"deep": null}]}', False),
        (f'{{"what": ["{BAD_WORD}"]}}', True),
        (f'{{"{BAD_WORD}": 1}}', True),
        (f'{{"what": "\\u00{ord(BAD_WORD[0]):02x}{BAD_WORD[1:]}"}}', True),
        (f'{{"what": "{BAD_WORD}", "what": "bread"}}', True),
    ],
)
@pytest.mark.parametrize("in_deltas", [0, 1, 2])
def test_tool_calls_are_judged_before_they_leave(
    guard: Classifier, arguments: str, blocked: bool, in_deltas: int
) -> None:
    """Those that come with a delta, and those that only the finished choice has."""
    calls = (ToolCall("1", "sell", '{"what": "flour"}'), ToolCall("2", "bake", arguments))
    said = words("Let me look.")
    first = Delta("", len(said) + 1, tool_calls=calls[:in_deltas])
    held, choice, released = written(guard, [*said, first], calls)
    left = tuple(call for delta in released for call in delta.tool_calls)
    assert left == choice.tool_calls
    assert calls[1] not in left if blocked else left == calls
    assert held.blocked == blocked
    assert choice.text == "Let me look. " or blocked


@pytest.mark.parametrize("arguments", ["{", '{"a": "\\ud800"}', "[" * 100_000])
def test_a_tool_call_that_cannot_be_read_does_not_leave(guard: Classifier, arguments: str) -> None:
    call = ToolCall("1", "bake", arguments)
    with pytest.raises(ModelOutputError, match="arguments"):
        written(guard, [Delta("", 1, tool_calls=(call,))], (call,))


def test_a_tool_call_is_read_without_escapes_and_punctuation() -> None:
    call = ToolCall("1", "bake", '{"what": "br\\u0065ad", "with": [{"salt": 1.5}, true, null]}')
    assert spoken(call) == "bake\nwhat\nbread\nwith\nsalt\n1.5\nTrue\nNone"
