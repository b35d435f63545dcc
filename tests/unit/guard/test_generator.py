from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.conversation import Conversation, Message, Role
from guard.engine.engine import Engine
from guard.engine.kv_cache import Float32
from guard.engine.sampler import SamplingParams
from guard.engine.settings import EngineSettings
from guard.errors import CancelledError, InputTooLongError, InvalidInputError
from guard.generation import Delta, FinishReason, GenerateTask
from guard.generator import Generator
from guard.testing import TINY_SHAPE, FakeRunner, logits_for, write_byte_tokenizer
from guard.tokenizer import Tokenizer

from .builders import write_bundle

STORY = "Once upon a time, né. The end."
ROWS = {token: token for token in range(TINY_SHAPE.vocab_size)}
IM_END = 257


@pytest.fixture
def generator(tmp_path: Path) -> Iterator[Generator]:
    control = write_byte_tokenizer(tmp_path / "tokenizer.json", ["<|im_start|>", "<|im_end|>"])
    story = Tokenizer(tmp_path / "tokenizer.json", control).encode_text(STORY)
    header = 256  # <|im_start|>

    def answers(seen: tuple[int, ...]) -> Float32:
        told = len(seen) - 1 - max(index for index, token in enumerate(seen) if token == header) - len("assistant\n")
        return logits_for({story[told] if told < len(story) else IM_END: 9.0}, ROWS)

    runner = FakeRunner(answers, step_seconds=0.001)
    engine = Engine(runner, EngineSettings(prefill_chunk=8, kv_bytes=1 << 20), "test")
    generator = Generator(write_bundle(tmp_path / "bundle", "instruct"), runner, engine)
    yield generator
    generator.close()


def task(**options: object) -> GenerateTask:
    return GenerateTask(Conversation((Message(Role.USER, "Tell me a story"),)), **options)  # type: ignore[arg-type]


def test_text_streams_and_ends_when_the_model_says_so(generator: Generator) -> None:
    deltas: list[Delta] = []
    result = generator.submit(task(), deltas.append).future.result(10)
    assert result.text == STORY == "".join(delta.text for delta in deltas)
    assert result.finish_reason is FinishReason.STOP
    assert result.completion_tokens == len(STORY.encode()) + 1
    assert all("\ufffd" not in delta.text for delta in deltas)


def test_max_tokens_ends_with_length(generator: Generator) -> None:
    result = generator.generate(task(max_tokens=4))
    assert (result.text, result.finish_reason, result.completion_tokens) == ("Once", FinishReason.LENGTH, 4)


def test_stop_string_across_tokens_never_leaves(generator: Generator) -> None:
    deltas: list[Delta] = []
    result = generator.submit(task(stop=("a time",)), deltas.append).future.result(10)
    assert result.text == "Once upon "
    assert result.finish_reason is FinishReason.STOP_SEQUENCE
    assert "a t" not in "".join(delta.text for delta in deltas)


def test_seeded_sampling_repeats(generator: Generator) -> None:
    params = SamplingParams(temperature=1.0, seed=3)
    assert generator.generate(task(sampling=params)).text == generator.generate(task(sampling=params)).text


def test_cancel_stops_the_stream(generator: Generator) -> None:
    deltas: list[Delta] = []

    def on_delta(delta: Delta) -> None:
        deltas.append(delta)
        ticket.cancel()

    ticket = generator.submit(task(), on_delta)
    with pytest.raises(CancelledError):
        ticket.future.result(10)
    assert len(deltas) <= 2
    assert generator.engine.kv_bytes_in_use == 0


def test_too_long_says_the_numbers(generator: Generator) -> None:
    with pytest.raises(InputTooLongError, match="the limit is 4095"):
        generator.generate(GenerateTask(Conversation((Message(Role.USER, "x" * 5000),))))
    with pytest.raises(
        InvalidInputError, match=r"max_tokens: \d+ prompt tokens \+ 4090 are more than the limit of 4096"
    ):
        generator.generate(task(max_tokens=4090))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ("",)}, "stop[0]"),
        ({"stop": ("a",) * 17}, "stop"),
        ({"stop": ("a" * 257,)}, "stop[0]"),
    ],
)
def test_bad_options_name_the_field(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        task(**options)
    assert caught.value.field == field
