from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from guard.classifier import Classifier, ClassifyTask, Mode
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.kv_cache import Float32
from guard.errors import InputTooLongError, ModelOutputError
from guard.normalize import ViewKind
from guard.policy import Policy
from guard.testing import logits_for
from guard.verdict import Verdict

from .builders import CATEGORIES, END, SEPARATOR, UNSAFE
from .scripted import BAD_WORD, ROWS, started


@pytest.fixture
def classifier(tmp_path: Path) -> Iterator[Classifier]:
    with started(tmp_path / "bundle") as (classifier, _):
        yield classifier


def task(text: str, mode: Mode = "one_pass", policy: Policy | None = None) -> ClassifyTask:
    return ClassifyTask(Conversation((Message(Role.USER, text),)), Target.PROMPT, policy or Policy(), mode)


def test_unsafe_text_is_unsafe_and_safe_text_is_safe(classifier: Classifier) -> None:
    unsafe = classifier.classify(task(f"some {BAD_WORD} thing"))
    safe = classifier.classify(task("some other thing"))
    assert (unsafe.verdict, safe.verdict) == (Verdict.UNSAFE, Verdict.SAFE)
    assert unsafe.unsafe_score == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)
    assert [category.code for category in unsafe.categories if category.flagged] == ["S2"]


def test_exact_mode_decodes_the_whole_list_and_agrees(classifier: Classifier) -> None:
    exact = classifier.classify(task(BAD_WORD, "exact"))
    one_pass = classifier.classify(task(BAD_WORD))
    assert [category.code for category in exact.categories if category.flagged] == ["S2", "S10"]
    assert (exact.verdict, exact.unsafe_score) == (one_pass.verdict, one_pass.unsafe_score)
    assert exact.completion_tokens == 3
    assert classifier.classify(task("fine", "exact")).verdict is Verdict.SAFE


def test_one_pass_reuses_the_prefix_and_decodes_nothing(classifier: Classifier) -> None:
    first = classifier.classify(task("short"))
    second = classifier.classify(task("short"))
    assert (first.cached_tokens, first.completion_tokens) == (0, 0)
    assert 0 < second.cached_tokens < second.prompt_tokens
    assert (first.verdict, first.unsafe_score) == (second.verdict, second.unsafe_score)


def test_chunks_of_prefill_change_nothing(classifier: Classifier) -> None:
    long = "x" * 300 + BAD_WORD + "y" * 300
    assert classifier.classify(task(long)).verdict is Verdict.UNSAFE


def test_one_request_never_sees_anothers_text(classifier: Classifier) -> None:
    """Failure test 22: safe and unsafe requests interleave; no verdict crosses over."""
    texts = [BAD_WORD if index % 3 == 0 else f"text {index}" for index in range(24)]
    tickets = [classifier.submit(task(text)) for text in texts]
    verdicts = [ticket.future.result(10).verdict is Verdict.UNSAFE for ticket in tickets]
    assert verdicts == [text == BAD_WORD for text in texts]


def test_too_long_is_refused_with_the_numbers_before_any_step(tmp_path: Path) -> None:
    with started(tmp_path / "bundle") as (classifier, runner):
        with pytest.raises(InputTooLongError, match="200000 tokens, the limit is 131072"):
            classifier.submit(task("x" * 200_000))
        assert runner.steps == 0


@pytest.mark.parametrize("position", [0, 60_000, 119_000])
def test_unsafe_part_of_a_long_text_is_found(classifier: Classifier, position: int) -> None:
    """Failure test 12: 120 KB with one bad word in it."""
    padding = "all is well. " * 10_000
    judgement = classifier.classify(task(f"{padding[:position]}{BAD_WORD}{padding[position:119_991]}"))
    assert judgement.verdict is Verdict.UNSAFE
    assert judgement.window.start <= position and position + len(BAD_WORD) <= judgement.window.end
    assert judgement.passes == judgement.window.index + 1 <= judgement.window.count


def test_safe_long_text_is_read_to_its_end(classifier: Classifier) -> None:
    judgement = classifier.classify(task("all is well. " * 1000))
    assert judgement.verdict is Verdict.SAFE
    assert judgement.passes == judgement.window.count == 15


@pytest.mark.parametrize(
    ("hidden", "view"),
    [
        ("f\u200borbidden", ViewKind.NORMALIZED),
        ("f0rb1dden", ViewKind.DELEETED),
        ("read Zm9yYmlkZGVuIGZydWl0IGZvcmJpZGRlbg==", ViewKind.DECODED),
        (BAD_WORD, ViewKind.RAW),
    ],
)
def test_worst_view_wins_and_is_named(classifier: Classifier, hidden: str, view: ViewKind) -> None:
    """Failure test 15."""
    judgement = classifier.classify(task(hidden))
    assert (judgement.verdict, judgement.view) == (Verdict.UNSAFE, view)


def test_earlier_messages_that_do_not_fit_are_counted(classifier: Classifier) -> None:
    turns = [Message((Role.USER, Role.ASSISTANT)[index % 2], "x" * 300) for index in range(8)]
    conversation = Conversation((*turns, Message(Role.USER, "now")))
    judgement = classifier.classify(ClassifyTask(conversation, Target.PROMPT))
    assert judgement.context_left_out == 5


@pytest.mark.parametrize("mode", ["one_pass", "exact"])
def test_broken_logits_are_never_safe(tmp_path: Path, mode: Mode) -> None:
    """Failure test 16."""
    broken = np.full(len(ROWS), np.nan, np.float32)
    with started(tmp_path / "bundle", lambda seen: broken) as (classifier, _), pytest.raises(ModelOutputError):
        classifier.classify(task("fine", mode))


def _says(following: dict[int, int], seen: tuple[int, ...]) -> Float32:
    return logits_for({following.get(seen[-1], END): 5.0}, ROWS)


@pytest.mark.parametrize(
    "following",
    [
        {290: SEPARATOR},  # neither safe nor unsafe
        {290: UNSAFE, 291: END},  # unsafe, but no category
        {290: UNSAFE, 291: CATEGORIES["S1"], CATEGORIES["S1"]: CATEGORIES["S2"]},  # no separator
        {290: UNSAFE, 291: CATEGORIES["S1"], CATEGORIES["S1"]: SEPARATOR, SEPARATOR: CATEGORIES["S1"]},  # S1,S1,S1,...
    ],
)
def test_garbled_list_is_an_error(tmp_path: Path, following: dict[int, int]) -> None:
    """Failure test 16: what cannot be read is refused in the exact mode, not guessed."""
    answer = partial(_says, following)
    with started(tmp_path / "bundle", answer) as (classifier, _), pytest.raises(ModelOutputError):
        classifier.classify(task("fine", "exact"))
