from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from guard.conversation import Conversation, Message, Role
from guard.errors import InvalidInputError
from guard.generation import Choice, FinishReason, GenerateTask, Generation, JsonFormat, Tool

GENERATION = Generation(
    choices=(Choice("one", FinishReason.STOP, 11), Choice("two", FinishReason.LENGTH, 21)),
    prompt_tokens=5,
    cached_tokens=0,
    drafted_tokens=0,
    accepted_tokens=0,
    queue_s=1.0,
    first_token_s=2.0,
    model_s=4.0,
)


def test_speed_counts_what_came_after_the_first_token_of_each_choice() -> None:
    assert GENERATION.completion_tokens == 32
    assert GENERATION.tokens_per_second == pytest.approx(30 / 3)


def test_one_token_and_none_have_no_speed() -> None:
    for tokens in (0, 1):
        short = replace(GENERATION, choices=(Choice("", FinishReason.STOP, tokens),))
        assert short.tokens_per_second == 0.0
    assert replace(GENERATION, first_token_s=5.0).tokens_per_second == 0.0


def test_the_first_choice_stands_for_the_generation() -> None:
    assert (GENERATION.text, GENERATION.finish_reason) == ("one", FinishReason.STOP)


CHAT = Conversation((Message(Role.USER, "hi"),))


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (lambda: GenerateTask(), "prompt"),
        (lambda: GenerateTask(CHAT, prompt="go on"), "prompt"),
        (lambda: GenerateTask(CHAT, max_tokens=0), "max_tokens"),
        (lambda: GenerateTask(CHAT, choices=0), "choices"),
        (lambda: GenerateTask(CHAT, choices=9), "choices"),
        (lambda: GenerateTask(CHAT, logprobs=21), "top_logprobs"),
        (lambda: GenerateTask(CHAT, stop=("x",) * 17), "stop"),
        (lambda: GenerateTask(CHAT, stop=("x", "")), "stop[1]"),
        (lambda: GenerateTask(CHAT, tools=(Tool("f"),), output_format=JsonFormat()), "response_format"),
        (lambda: GenerateTask(prompt="go on", tools=(Tool("f"),)), "tools"),
    ],
)
def test_a_task_that_contradicts_itself_names_the_field(task: Callable[[], GenerateTask], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        task()
    assert caught.value.field == field
