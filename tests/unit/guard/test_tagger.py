from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from guard.conversation import Conversation, Message, Role
from guard.engine.engine import Engine
from guard.engine.kv_cache import Float32
from guard.engine.settings import EngineSettings
from guard.errors import DeadlineError, GuardError, InputTooLongError, InvalidInputError, ModelOutputError
from guard.generator import Generator
from guard.tagger import Label, Tagger, TagTask
from guard.testing import TINY_SHAPE, FakeRunner, write_byte_tokenizer
from guard.tokenizer import Tokenizer

from .builders import write_bundle

LABELS = (Label("red", "like blood"), Label("blue"), Label("red wine"))
#: What the model thinks of each label after a text: log probabilities of whole labels.
Opinion = Callable[[str], Mapping[str, float]]


class Model:
    """A model that writes " NAME" after "Label:" with the probabilities of an opinion on the text of the prompt."""

    def __init__(self, directory: Path, opinion: Opinion, **settings: int) -> None:
        control = write_byte_tokenizer(directory / "tokenizer.json", ["<|im_start|>", "<|im_end|>"])
        self.tokenizer = Tokenizer(directory / "tokenizer.json", control)
        self.opinion = opinion
        self.prompts: list[str] = []
        self.runner = FakeRunner(self.answer)
        engine = Engine(self.runner, EngineSettings(**settings), "test")
        self.generator = Generator(write_bundle(directory / "bundle", "instruct"), self.runner, engine)
        self.tagger = Tagger(self.generator)

    def answer(self, seen: tuple[int, ...]) -> Float32:
        """The distribution of the next byte, from the labels that begin as what was written."""
        prompt, _, written = self.tokenizer.decode(seen).rpartition("Label:")
        if not written:
            self.prompts.append(prompt)
        text = prompt.rpartition("Text: ")[2].partition("\nLabel:")[0]
        mass = np.full(TINY_SHAPE.vocab_size, 1e-12)
        for name, logprob in self.opinion(text).items():
            label = [*self.tokenizer.encode_text(f" {name}"), 257]
            at = len(written.encode())
            if label[:at] == self.tokenizer.encode_text(written):
                mass[label[at]] += math.exp(logprob)
        logits: Float32 = np.log(mass).astype(np.float32)
        return logits


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Model]]:
    models: list[Model] = []

    def build(opinion: Opinion, **settings: int) -> Model:
        models.append(Model(tmp_path, opinion, **settings))
        return models[-1]

    yield build
    for model in models:
        model.generator.close()


def colours(text: str) -> dict[str, float]:
    """Always leans to blue; a text moves the odds."""
    logs = {"red": math.log(0.1), "blue": math.log(0.7), "red wine": math.log(0.2)}
    if "tomato" in text:
        logs["red"] = math.log(0.35)
    if "glass" in text:
        logs["red wine"] = math.log(0.9)
    return logs


def test_uncalibrated_probabilities_are_the_models(start: Callable[..., Model]) -> None:
    tagging = start(colours).tagger.tag(TagTask(LABELS, text="a tomato", calibrated=False))
    expected = {"blue": 0.7 / 1.25, "red": 0.35 / 1.25, "red wine": 0.2 / 1.25}
    assert {score.name: score.probability for score in tagging.scores} == pytest.approx(expected, abs=1e-5)
    assert [score.name for score in tagging.scores] == ["blue", "red", "red wine"]
    assert tagging.label == "blue"


def test_calibration_takes_out_what_the_model_prefers_anyway(start: Callable[..., Model]) -> None:
    model = start(colours)
    tagging = model.tagger.tag(TagTask(LABELS, text="a tomato"))
    assert {score.name: score.probability for score in tagging.scores} == pytest.approx(
        {"red": 3.5 / 5.5, "blue": 1 / 5.5, "red wine": 1 / 5.5}, abs=1e-5
    )
    assert model.tagger.tag(TagTask(LABELS, text="a glass")).label == "red wine"
    assert model.tagger.tag(TagTask(LABELS, text="a stone")).scores[0].probability == pytest.approx(1 / 3, abs=1e-5)


def test_a_label_that_begins_another_can_win_and_lose(start: Callable[..., Model]) -> None:
    for text, label in (("a tomato", "red"), ("a glass", "red wine")):
        model = start(lambda text: {"red": -0.1, "red wine": -5.0} if "tomato" in text else {"red": -5, "red wine": -1})
        assert model.tagger.tag(TagTask((LABELS[0], LABELS[2]), text=text, calibrated=False)).label == label


def test_the_preference_is_measured_once(start: Callable[..., Model]) -> None:
    model = start(colours)
    model.tagger.tag(TagTask(LABELS, text="a tomato"))
    steps, computed = model.runner.steps, model.runner.tokens
    tagging = model.tagger.tag(TagTask(LABELS, text="a tomato"))
    assert model.runner.steps - steps < steps / 2
    assert tagging.cached_tokens >= 100
    assert model.runner.tokens - computed < tagging.prompt_tokens - tagging.cached_tokens + 30
    texts = [prompt.rpartition("Text: ")[2].partition("\n")[0] for prompt in model.prompts]
    assert texts == ["a tomato", "N/A", "", "[MASK]", "a tomato"]
    model.tagger.tag(TagTask(LABELS[:2], text="a tomato"))  # other labels: measured anew
    assert len(model.prompts) == 9


def test_labels_of_one_token_need_one_step(start: Callable[..., Model]) -> None:
    model = start(lambda text: {"": 0.0})
    labels = tuple(Label(name) for name in ("red", "blue"))
    model.tagger._label_ids = lambda task: [(97,), (98,)]  # type: ignore[method-assign]
    model.tagger.tag(TagTask(labels, text="x", calibrated=False))
    assert model.runner.steps <= 2  # the warm prompt in one or two chunks


def test_the_prompt(start: Callable[..., Model]) -> None:
    model = start(colours)
    model.tagger.tag(TagTask(LABELS, text="a tomato", instruction=" Which colour? ", calibrated=False))
    assert model.prompts == [
        "system\nWhich colour?\nLabels:\n- red: like blood\n- blue\n- red wine\nAnswer with one of the labels only.\n"
        "user\nText: a tomato\nLabel:\nassistant\n"
    ]


def test_the_last_message_of_a_conversation_is_labelled(start: Callable[..., Model]) -> None:
    model = start(colours)
    conversation = Conversation((Message(Role.USER, "What is it?"), Message(Role.ASSISTANT, "a tomato")))
    assert model.tagger.tag(TagTask(LABELS, conversation=conversation)).label == "red"
    assert "user\nConversation:\nuser: What is it?\n\nText: a tomato\nLabel:" in model.prompts[0]
    alone = Conversation((Message(Role.USER, "a tomato"),))
    same = [
        model.tagger.tag(TagTask(LABELS, conversation=alone)).scores,
        model.tagger.tag(TagTask(LABELS, text="a tomato")).scores,
    ]
    assert same[0] == same[1]


def test_equal_labels_keep_their_order(start: Callable[..., Model]) -> None:
    labels = tuple(Label(name) for name in ("c", "a", "b"))
    tagging = start(lambda text: dict.fromkeys("abc", 0.0)).tagger.tag(TagTask(labels, text="x"))
    assert [score.name for score in tagging.scores] == ["c", "a", "b"]


def test_many_labels_with_common_beginnings(start: Callable[..., Model]) -> None:
    names = [f"label {first}{second}" for first in "abcdefgh" for second in "12345678"]
    opinion = {name: -float(index) / 7 for index, name in enumerate(names)}
    model = start(lambda text: opinion, prefill_chunk=4096)
    tagging = model.tagger.tag(TagTask(tuple(map(Label, names)), text="x", calibrated=False))
    total = sum(math.exp(value) for value in opinion.values())
    expected = {name: math.exp(value) / total for name, value in opinion.items()}
    assert {score.name: score.probability for score in tagging.scores} == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert model.runner.steps == 1 + 8  # one for each letter, not one for each label


def test_memory_is_returned_and_a_late_task_fails(start: Callable[..., Model]) -> None:
    model = start(colours)
    with pytest.raises(DeadlineError):
        model.tagger.submit(TagTask(LABELS, text="x"), deadline=0.0)
    model.tagger.tag(TagTask(LABELS, text="x"))
    assert model.generator.engine.kv_bytes_in_use == 0


def test_unreadable_logits_are_an_error(start: Callable[..., Model]) -> None:
    with pytest.raises(ModelOutputError):
        start(lambda text: {"red": math.nan}).tagger.tag(TagTask(LABELS, text="x"))


def test_a_text_that_is_too_long_says_the_numbers(start: Callable[..., Model]) -> None:
    model = start(colours)
    with pytest.raises(InputTooLongError, match=r"^text: 5\d\d\d tokens, the limit is 40\d\d$"):
        model.tagger.tag(TagTask(LABELS, text="x" * 5000))
    with pytest.raises(InputTooLongError, match=r"^messages: "):
        model.tagger.tag(TagTask(LABELS, conversation=Conversation((Message(Role.USER, "x" * 5000),))))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "text"),
        ({"text": "x", "conversation": Conversation((Message(Role.USER, "x"),))}, "text"),
        ({"text": " \n"}, "text"),
        ({"text": "\ud800"}, "text"),
        ({"conversation": Conversation((Message(Role.SYSTEM, "x"), Message(Role.USER, "x")))}, "messages[0].role"),
        ({"text": "x", "labels": (Label("a"),)}, "labels"),
        ({"text": "x", "labels": tuple(Label(str(number)) for number in range(65))}, "labels"),
        ({"text": "x", "labels": (Label("a"), Label(""))}, "labels[1].name"),
        ({"text": "x", "labels": (Label("a"), Label("b" * 65))}, "labels[1].name"),
        ({"text": "x", "labels": (Label("a\nb"), Label("b"))}, "labels[0].name"),
        ({"text": "x", "labels": (Label("a"), Label(" b"))}, "labels[1].name"),
        ({"text": "x", "labels": (Label("a"), Label("b"), Label("a"))}, "labels[2].name"),
        ({"text": "x", "labels": (Label("a"), Label("\udfff"))}, "labels[1].name"),
        ({"text": "x", "labels": (Label("a"), Label("b", "c" * 513))}, "labels[1].description"),
        ({"text": "x", "labels": (Label("a"), Label("b", "c\rd"))}, "labels[1].description"),
        ({"text": "x", "instruction": "x" * 2001}, "instruction"),
    ],
)
def test_bad_tasks_name_the_field(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TagTask(**{"labels": LABELS, "today": date(2026, 11, 22), **options})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert isinstance(caught.value, GuardError)
