from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.conversation import Conversation, Message, Role
from guard.engine.engine import Engine
from guard.engine.kv_cache import Float32
from guard.engine.sampler import SamplingParams
from guard.engine.settings import EngineSettings
from guard.errors import CancelledError, DeadlineError, InputTooLongError, InvalidInputError
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


PARROT = "the quick brown fox jumps over the lazy dog; "


@pytest.fixture
def parrot(tmp_path: Path) -> Iterator[tuple[Generator, FakeRunner]]:
    """A model that says its prompt over and over, with a slip that depends on all that was said before."""
    period = len(PARROT)

    def answers(seen: tuple[int, ...]) -> Float32:
        scores = {seen[-min(period, len(seen))]: 4.0, 33 + sum(seen) % 64: 1.0 + sum(seen[1::2]) % 5}
        return logits_for(scores, ROWS)

    runner = FakeRunner(answers)
    engine = Engine(runner, EngineSettings(prefill_chunk=32, max_active=8), "test")
    generator = Generator(write_bundle(tmp_path / "bundle", "instruct"), runner, engine)
    yield generator, runner
    generator.close()


def plain(**options: object) -> GenerateTask:
    return GenerateTask(prompt=PARROT * 3, **({"max_tokens": 60} | options))  # type: ignore[arg-type]


SAMPLINGS = (
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=0.7, top_k=3, seed=6, repetition_penalty=1.2),
)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_prompt_lookup_saves_steps_and_changes_no_text(
    parrot: tuple[Generator, FakeRunner], sampling: SamplingParams
) -> None:
    generator, runner = parrot
    without = generator.generate(plain(sampling=sampling))
    steps = runner.steps
    looked_up = generator.generate(plain(sampling=sampling, prompt_lookup=True))
    assert looked_up.choices == without.choices
    assert without.drafted_tokens == 0 < looked_up.accepted_tokens <= looked_up.drafted_tokens
    assert runner.steps - steps < 60 - looked_up.accepted_tokens / 2


def test_each_choice_is_what_its_own_seed_writes_alone(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, _ = parrot
    together = generator.generate(plain(choices=4, sampling=SamplingParams(temperature=1.5, seed=11)))
    alone = [generator.generate(plain(sampling=SamplingParams(temperature=1.5, seed=11 + i))) for i in range(4)]
    assert together.choices == tuple(generation.choices[0] for generation in alone)
    assert len({choice.text for choice in together.choices}) == 4
    assert together.completion_tokens == sum(generation.completion_tokens for generation in alone)


def test_a_seed_at_the_end_of_its_range_wraps_around(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, _ = parrot
    last = SamplingParams(temperature=1.5, seed=(1 << 64) - 1)
    assert len(generator.generate(plain(choices=2, sampling=last)).choices) == 2


def test_a_crowd_gets_what_each_gets_alone(parrot: tuple[Generator, FakeRunner]) -> None:
    """Failure test 22."""
    generator, _ = parrot
    tasks = [plain(sampling=SAMPLINGS[index % 3], max_tokens=20 + 5 * index) for index in range(8)]
    alone = [generator.generate(each).choices for each in tasks]
    tickets = [generator.submit(each, lambda delta: None) for each in tasks]
    assert [ticket.future.result(20).choices for ticket in tickets] == alone
    assert generator.engine.kv_bytes_in_use == 0


def test_a_shared_beginning_is_computed_once(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, runner = parrot
    first = generator.generate(plain(max_tokens=8))
    tokens = runner.tokens
    again = generator.generate(plain(max_tokens=8))
    assert (first.cached_tokens, again.cached_tokens) == (0, 128)
    assert again.choices == first.choices and again.prompt_tokens == 3 * len(PARROT)
    assert runner.tokens - tokens < first.prompt_tokens - 128 + 8 * 17


def test_what_a_caller_raises_ends_its_own_generation(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, _ = parrot

    def failing(delta: Delta) -> None:
        raise BrokenPipeError

    ticket = generator.submit(plain(), failing)
    with pytest.raises(BrokenPipeError):
        ticket.future.result(10)
    assert generator.engine.kv_bytes_in_use == 0
    assert generator.generate(plain(max_tokens=3)).completion_tokens == 3


def test_a_deadline_ends_a_text_halfway(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, _ = parrot
    deltas: list[Delta] = []

    def on_delta(delta: Delta) -> None:
        deltas.append(delta)
        ticket.deadline = time.monotonic()

    ticket = generator.submit(plain(), on_delta, deadline=time.monotonic() + 60)
    with pytest.raises(DeadlineError):
        ticket.future.result(10)
    assert 1 <= len(deltas) < 60 and generator.engine.kv_bytes_in_use == 0


def test_memory_for_all_choices_is_asked_for_at_once(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, _ = parrot
    needed = 3 * (3 * len(PARROT) + 60) * TINY_SHAPE.kv_bytes_per_token
    generator.generate(plain(choices=3))
    assert generator.engine.kv_bytes_peak == needed


def test_times_are_told(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, _ = parrot
    result = generator.generate(plain())
    assert 0 <= result.queue_s <= result.first_token_s <= result.queue_s + result.model_s


def test_an_empty_prompt_is_refused(parrot: tuple[Generator, FakeRunner]) -> None:
    generator, _ = parrot
    with pytest.raises(InvalidInputError, match="prompt: has no tokens"):
        generator.generate(GenerateTask(prompt=""))
