from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.engine.sampler import Sampler, SamplingParams
from guard.engine.sequence import Float32
from guard.generation import Choice, Constraint, Delta, FinishReason, GenerateTask
from guard.lookup import PromptLookup
from guard.tokenizer import Tokenizer
from guard.writer import Vocabulary, Writer

ROWS = 300
STOP = 299
LETTERS = range(40, 46)  # of the byte tokenizer: one character each
PROMPT = [40, 41, 42, 43, 40, 41, 42, 44, 45, 40, 41]

Drafts = Callable[[Writer], tuple[int, ...]]


def model(tokens: Sequence[int]) -> Float32:
    """Logits that follow from the last few tokens: six letters, and sometimes the end."""
    random = np.random.default_rng([7, *tokens[-2:], len(tokens) % 3])
    logits = np.full(ROWS, -30.0, np.float32)
    logits[list(LETTERS)] = random.normal(0.0, 1.5, len(LETTERS))
    logits[STOP] = random.normal(-3.0, 1.0)
    return logits


def write(tokenizer: Tokenizer, task: GenerateTask, drafts: Drafts, constraint: Constraint | None = None) -> Any:
    """What a generator does with one writer: (tokens, choice, streamed deltas)."""
    deltas: list[Delta] = []
    lookup = PromptLookup(PROMPT) if task.prompt_lookup else None
    sampler = Sampler(task.sampling, PROMPT)
    writer = Writer(task, 0, Vocabulary(tokenizer, frozenset([STOP])), sampler, constraint, lookup, deltas.append)
    written: list[int] = []
    draft: tuple[int, ...] = ()
    while not writer.done:
        tokens = [*PROMPT, *written]
        right = writer.take(np.stack([model([*tokens, *draft[:index]]) for index in range(len(draft) + 1)]), draft)
        assert right <= len(draft)
        written += [*draft[:right], writer.token]
        draft = drafts(writer) if not writer.done else ()
        assert len(written) + len(draft) <= max(task.max_tokens, len(written))
    return written, writer.finish(), deltas


def no_drafts(writer: Writer) -> tuple[int, ...]:
    return ()


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 1 << 32),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
)
TASKS = st.builds(
    GenerateTask,
    prompt=st.just("x"),
    max_tokens=st.integers(1, 30),
    sampling=PARAMS,
    logprobs=st.sampled_from([None, 2]),
    stop=st.sampled_from([(), ("J",), ("JK", "KJI")]),
    prompt_lookup=st.just(True),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(task=TASKS, seed=st.integers(0, 1000))
def test_drafts_change_nothing_but_the_number_of_steps(tokenizer: Tokenizer, task: GenerateTask, seed: int) -> None:
    random = np.random.default_rng(seed)

    def wild(writer: Writer) -> tuple[int, ...]:
        room = min(task.max_tokens - writer._count - 1, int(random.integers(0, 9)))
        return tuple(random.choice([*LETTERS, STOP], room).tolist())

    alone = write(tokenizer, task, no_drafts)
    assert write(tokenizer, task, Writer.draft) == alone
    assert write(tokenizer, task, wild) == alone


def test_lookup_drafts_are_accepted_and_counted(tokenizer: Tokenizer) -> None:
    lookups = []

    def drafts(writer: Writer) -> tuple[int, ...]:
        lookups.append(writer.lookup)
        return writer.draft()

    write(tokenizer, GenerateTask(prompt="x", max_tokens=200, prompt_lookup=True), drafts)
    lookup = lookups[0]
    assert lookup is not None and 20 < lookup.accepted <= lookup.drafted


@pytest.mark.parametrize(("right", "taken"), [(0, 1), (2, 3), (4, 5)])
def test_the_part_of_a_draft_that_is_right_is_taken(tokenizer: Tokenizer, right: int, taken: int) -> None:
    """And one token more, which the model chose itself."""
    said = [40, 41, 42, 43, 44]
    writer = Writer(
        GenerateTask(prompt="x"),
        0,
        Vocabulary(tokenizer, frozenset([STOP])),
        Sampler(SamplingParams()),
        None,
        None,
        lambda delta: None,
    )
    draft = tuple(said[:right] + [45] * (4 - right))
    logits = np.stack([np.eye(ROWS, dtype=np.float32)[token] for token in said])
    assert writer.take(logits, draft) == right
    assert writer.token == said[right]
    assert writer.finish().completion_tokens == taken


def test_a_draft_ends_with_the_text(tokenizer: Tokenizer) -> None:
    """What was drafted after the end is not looked at."""
    said = [40, STOP, 41, 42]
    deltas: list[Delta] = []
    writer = Writer(
        GenerateTask(prompt="x"),
        0,
        Vocabulary(tokenizer, frozenset([STOP])),
        Sampler(SamplingParams()),
        None,
        None,
        deltas.append,
    )
    writer.take(np.stack([np.eye(ROWS, dtype=np.float32)[token] for token in said]), tuple(said[:3]))
    choice = writer.finish()
    assert writer.done and (choice.finish_reason, choice.completion_tokens) == (FinishReason.STOP, 2)
    assert choice.text == "".join(delta.text for delta in deltas) == tokenizer.decode([40])


class Alternating:
    """Allows 40 and 41 in turn, and the end after six."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def allowed(self) -> npt.NDArray[np.bool_]:
        rows = np.zeros(ROWS, np.bool_)
        rows[STOP if len(self.accepted) == 6 else 40 + len(self.accepted) % 2] = True
        return rows

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


@pytest.mark.parametrize("draft", [(), (40, 41), (41, 40, 42), (40, 40, 40)])
def test_a_constraint_holds_for_drafts_too(tokenizer: Tokenizer, draft: tuple[int, ...]) -> None:
    constraint = Alternating()
    written, choice, _ = write(tokenizer, GenerateTask(prompt="x", max_tokens=20), lambda writer: draft, constraint)
    assert written == [40, 41, 40, 41, 40, 41, STOP]
    assert constraint.accepted == written[:-1]
    assert isinstance(choice, Choice) and choice.finish_reason is FinishReason.STOP


def test_logprobs_travel_with_the_text_they_belong_to(tokenizer: Tokenizer) -> None:
    task = GenerateTask(prompt="x", max_tokens=12, logprobs=1, sampling=SamplingParams(temperature=1.0, seed=1))
    written, choice, deltas = write(tokenizer, task, Writer.draft)
    streamed = [noted for delta in deltas for noted in delta.logprobs]
    assert tuple(streamed) == choice.logprobs
    assert [noted.token_id for noted in streamed] == [token for token in written if token != STOP]
    assert "".join(noted.text for noted in streamed) == choice.text
    assert all(noted.logprob <= noted.top[0].logprob <= 0 for noted in streamed)
