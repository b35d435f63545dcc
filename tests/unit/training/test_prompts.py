"""Rows become sequences and targets."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from guard.conversation import Conversation, Message, Role, Target
from guard.testing import write_byte_tokenizer
from guard.tokenizer import Tokenizer
from training.data import Row
from training.prompts import Prompts, shorten
from training.recipe import FORMAT, Recipe

RECIPE = Recipe()
#: The byte tokenizer has ids 0..257; label tokens are bytes that no test text has.
ANSWER = replace(FORMAT.answer, safe=1, unsafe=2, end=3, categories={"S1": 4, "S2": 5, "S10": 6})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return Tokenizer(path, write_byte_tokenizer(path, ["<|im_start|>", "<|im_end|>"]))


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> Prompts:
    return Prompts(replace(FORMAT, answer=ANSWER), tokenizer)


def _row(label: str, categories: tuple[str, ...] = (), *texts: str, weak: bool = False) -> Row:
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts or ("Hello",)))
    target = Target.PROMPT if len(messages) % 2 else Target.RESPONSE
    return Row(Conversation(messages), target, "unsafe" if label == "unsafe" else "safe", categories, "en", "t", weak)


def test_a_safe_row_has_one_aim_at_the_last_prompt_token(prompts: Prompts) -> None:
    example = prompts.example(_row("safe"), 96, RECIPE, random.Random(0))
    (aim,) = example.aims
    assert aim.position == len(example.token_ids) - 1
    assert aim.weight == 1.0
    assert prompts.head_token_ids[int(np.argmax(aim.target))] == ANSWER.safe
    assert aim.target.sum() == 1


def test_an_unsafe_row_teaches_verdict_categories_and_end(prompts: Prompts) -> None:
    row = _row("unsafe", ("S2", "S10"), weak=True)
    example = prompts.example(row, 96, RECIPE, random.Random(0))
    prompt = prompts.prompt(row.conversation, row.target)
    said = example.token_ids[len(prompt) :]
    assert said[0] == ANSWER.unsafe
    assert sorted(said[1:]) == [5, 6]
    assert [aim.position for aim in example.aims] == [len(prompt) - 1 + step for step in range(4)]
    wanted = [
        {prompts.head_token_ids[index]: float(aim.target[index]) for index in np.flatnonzero(aim.target)}
        for aim in example.aims
    ]
    assert wanted == [{2: 1.0}, {5: 0.5, 6: 0.5}, {said[2]: 1.0}, {ANSWER.end: 1.0}]
    weights = [aim.weight for aim in example.aims]
    assert weights == pytest.approx([0.5, 0.25, 0.25 * RECIPE.list_weight, 0.25 * RECIPE.list_weight])


def test_an_unsafe_row_without_category_teaches_the_verdict_only(prompts: Prompts) -> None:
    example = prompts.example(_row("unsafe"), 96, RECIPE, random.Random(0))
    assert len(example.aims) == 1


@pytest.mark.parametrize("target", list(Target))
def test_every_prompt_begins_with_the_prefix(prompts: Prompts, target: Target) -> None:
    prefix = prompts.prefix(target)
    assert len(prefix) > 10
    texts = ("A", "B") if target is Target.RESPONSE else ("User: x",)
    row = _row("safe", (), *texts)
    assert prompts.prompt(row.conversation, target)[: len(prefix)] == prefix
    if target is Target.RESPONSE:
        alone = Conversation((Message(Role.ASSISTANT, "C"),))
        assert prompts.prompt(alone, target)[: len(prefix)] == prefix


def test_short_conversations_are_not_changed(tokenizer: Tokenizer) -> None:
    conversation = Conversation((Message(Role.USER, "a" * 40), Message(Role.ASSISTANT, "b" * 56)))
    assert shorten(conversation, 96, tokenizer) == conversation


def test_a_long_message_keeps_its_beginning_and_end(tokenizer: Tokenizer) -> None:
    text = "begin" + "x" * 500 + "end"
    (message,) = shorten(Conversation((Message(Role.USER, text),)), 80, tokenizer).messages
    assert message.content.startswith("beginx")
    assert message.content.endswith("xend")
    assert len(message.content) == 81  # 80 one-byte tokens and the line break between the parts


def test_the_judged_message_keeps_two_thirds_of_the_room(tokenizer: Tokenizer) -> None:
    conversation = Conversation((Message(Role.USER, "u" * 300), Message(Role.ASSISTANT, "a" * 300)))
    first, last = shorten(conversation, 90, tokenizer).messages
    assert (len(first.content), len(last.content)) == (31, 61)
