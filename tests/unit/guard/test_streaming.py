from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifier import Classifier, ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.cutter import TextCutter
from guard.engine.settings import EngineSettings
from guard.errors import InvalidInputError, OverloadedError
from guard.policy import Policy
from guard.scan import ScanLimits
from guard.streaming import Check, StreamTask
from guard.testing import TINY_SHAPE, FakeRunner
from guard.tokenizer import Tokenizer
from guard.verdict import Judgement, Verdict

from .scripted import BAD_WORD, started

QUESTION = Message(Role.USER, "Tell me a story")
LIMITS = ScanLimits(window=120, overlap=30, context=200)


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Classifier, FakeRunner]]:
    with started(tmp_path_factory.mktemp("guard") / "bundle", limits=LIMITS) as pair:
        yield pair


def stream(
    classifier: Classifier, deltas: Sequence[str], at_sentence_ends: bool = False
) -> tuple[list[Check], Judgement]:
    """What a server does: judge at each checkpoint, stop at the first unsafe one, judge the rest at the end."""
    task = StreamTask((QUESTION,), Target.RESPONSE, Policy(), every_tokens=8, at_sentence_ends=at_sentence_ends)
    session = classifier.stream(task)
    checks: list[Check] = []
    try:
        for delta in deltas:
            session.add(delta)
            while (ticket := session.next_check()) is not None:
                checks.append(ticket.future.result(10))
                if checks[-1].reading.verdict is Verdict.UNSAFE:
                    return checks, session.result()
        if (ticket := session.check_rest()) is not None:
            checks.append(ticket.future.result(10))
        return checks, session.result()
    finally:
        session.close()


def split(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


WORDS = st.lists(
    st.sampled_from(["once", "upon", "a", "time.", "été", "🙂", "\n", "there was", BAD_WORD, "x" * 70]), min_size=1
)


@settings(deadline=None)
@given(words=WORDS, cuts=st.lists(st.integers(0, 10_000)), sentences=st.booleans())
def test_any_split_gives_the_same_verdicts(
    guard: tuple[Classifier, FakeRunner], words: list[str], cuts: list[int], sentences: bool
) -> None:
    text = " ".join(words)
    if not text.strip():
        return
    classifier, _ = guard
    whole_checks, whole = stream(classifier, [text], sentences)
    checks, judgement = stream(classifier, split(text, cuts), sentences)
    assert [(check.judged, check.reading.verdict) for check in checks] == [
        (check.judged, check.reading.verdict) for check in whole_checks
    ]
    assert (judgement.verdict, judgement.unsafe_score) == (whole.verdict, whole.unsafe_score)
    assert (judgement.verdict is Verdict.UNSAFE) == (BAD_WORD in words)


@settings(deadline=None)
@given(before=st.integers(0, 60), after=st.integers(0, 60))
def test_nothing_unsafe_is_released(guard: tuple[Classifier, FakeRunner], before: int, after: int) -> None:
    text = "all is well. " * before + BAD_WORD + " and more" * after
    checks, judgement = stream(guard[0], list(text))
    assert judgement.verdict is Verdict.UNSAFE
    assert checks[-1].released <= text.index(BAD_WORD)
    assert all(check.released == check.judged for check in checks[:-1])


def test_final_verdict_is_classifys(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, _ = guard
    for text in ("a safe story.", f"a {BAD_WORD} story", f"f\u200b{BAD_WORD[1:]} in disguise"):
        conversation = Conversation((QUESTION, Message(Role.ASSISTANT, text)))
        whole = classifier.classify(ClassifyTask(conversation, Target.RESPONSE))
        assert stream(classifier, list(text))[1].verdict is whole.verdict


def test_cost_is_linear_in_the_text(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, runner = guard
    cost = []
    for length in (100, 200, 400, 800):
        before = runner.tokens
        stream(classifier, ["tale " * length])
        cost.append(runner.tokens - before)
    growth = np.diff(cost) / np.array([100, 200, 400])  # tokens computed for each further word
    assert growth.max() < 1.3 * growth.min()


def test_checkpoints_do_not_depend_on_later_text(tokenizer: Tokenizer) -> None:
    cutter = TextCutter(tokenizer, 8, at_sentence_ends=False)
    text = "  one two three four five " + "y" * 100
    found = [cutter.next(text[:end], 0) for end in range(len(text) + 1)]
    first = next(end for end, place in enumerate(found) if place is not None)
    assert found[first] == len("  one two") == first - 1
    assert set(found[first:]) == {found[first]}


def test_text_without_spaces_is_cut_anyway(tokenizer: Tokenizer) -> None:
    cutter = TextCutter(tokenizer, 8, at_sentence_ends=True)
    assert cutter.next("🙂" * 17, 0) == 16  # 64 bytes
    assert cutter.next(" " * 500, 0) is None


def test_memory_is_held_and_given_back(tmp_path: Path) -> None:
    engine = EngineSettings(kv_bytes=900 * TINY_SHAPE.kv_bytes_per_token)
    task = StreamTask((QUESTION,), Target.RESPONSE, Policy())
    with started(tmp_path / "bundle", settings=engine, limits=LIMITS) as (classifier, _):
        session = classifier.stream(task)
        assert classifier.engine.kv_bytes_in_use > 0
        with pytest.raises(OverloadedError):
            classifier.stream(task)
        # A job that waits for this memory must not stop the one that holds it.
        waiting = classifier.submit(ClassifyTask(Conversation((Message(Role.USER, "x" * 110),)), Target.PROMPT))
        session.add("text")
        ticket = session.check_rest()
        assert ticket is not None
        assert ticket.future.result(10).reading.verdict is Verdict.SAFE
        session.close()
        assert waiting.future.result(10).verdict is Verdict.SAFE
        assert classifier.engine.kv_bytes_in_use == 0


def test_wrong_use_is_refused(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, _ = guard
    with pytest.raises(InvalidInputError, match=r"messages\[1\]\.role"):
        classifier.stream(StreamTask((QUESTION,), Target.PROMPT, Policy()))
    with pytest.raises(InvalidInputError, match="check_every_tokens"):
        StreamTask((QUESTION,), Target.RESPONSE, Policy(), every_tokens=1)
    session = classifier.stream(StreamTask((QUESTION,), Target.RESPONSE, Policy()))
    with pytest.raises(InvalidInputError, match="text"):
        session.result()
    with pytest.raises(InvalidInputError, match="surrogate"):
        session.add("\ud800")
    session.close()
