from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifier import Classifier, ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.cutter import TextCutter
from guard.engine.kv_cache import Float32
from guard.engine.settings import EngineSettings
from guard.errors import CancelledError, InputTooLongError, InvalidInputError, OverloadedError
from guard.phrases import Phrase, PhraseList
from guard.policy import Policy, PolicyAction
from guard.scan import ScanLimits
from guard.streaming import Check, StreamTask
from guard.testing import TINY_SHAPE, FakeRunner
from guard.tokenizer import Tokenizer
from guard.verdict import Action, DecidedBy, Judgement, Verdict

from .scripted import BAD_WORD, answers, started

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


def check_all(classifier: Classifier, text: str, policy: Policy) -> tuple[list[Check], Judgement]:
    """Every check of the whole text, whatever they say."""
    session = classifier.stream(StreamTask((QUESTION,), Target.RESPONSE, policy, every_tokens=8))
    checks = []
    session.add(text)
    while (ticket := session.next_check() or session.check_rest()) is not None:
        checks.append(ticket.future.result(10))
    session.close()
    return checks, session.result()


def test_shadow_mode_reports_and_releases(guard: tuple[Classifier, FakeRunner]) -> None:
    text = f"all is well so far, then {BAD_WORD} and more is said"
    checks, judgement = check_all(guard[0], text, Policy(action=PolicyAction.SHADOW))
    assert judgement.verdict is Verdict.UNSAFE
    assert {check.action for check in checks} == {Action.ALLOW, Action.REPORT}
    assert [check.released for check in checks] == [check.judged for check in checks]
    assert checks[-1].released == len(text)


@pytest.mark.parametrize("action", PolicyAction)
def test_the_deny_list_is_searched_at_every_check(guard: tuple[Classifier, FakeRunner], action: PolicyAction) -> None:
    classifier, _ = guard
    policy = Policy(deny=PhraseList((Phrase("Project Bluebird", name="codename"),)), action=action)
    checks, judgement = check_all(classifier, "They call it project \n bluebird, and they say so.", policy)
    assert judgement.verdict is Verdict.UNSAFE
    assert (judgement.decided_by, judgement.matched_entry) == (DecidedBy.DENY_LIST, "codename")
    blocked = [check for check in checks if check.matched_entry == "codename"]
    assert blocked
    assert all(check.reading.prompt_tokens == 0 for check in blocked)
    assert (checks[-1].released == checks[-1].judged) == (action is PolicyAction.SHADOW)


def test_a_text_over_the_limit_is_refused(tmp_path: Path) -> None:
    with started(tmp_path / "bundle", limits=ScanLimits(window=120, overlap=30, context=200, text=200)) as (guard, _):
        with pytest.raises(InputTooLongError, match="the limit is 200"):
            check_all(guard, "word " * 50, Policy())
        assert check_all(guard, "word " * 40, Policy())[1].verdict is Verdict.SAFE


def test_a_reading_that_is_too_long_is_refused(guard: tuple[Classifier, FakeRunner]) -> None:
    """Failure test 11: U+FDFA is one character of three bytes, and a whole sentence when it is normalized."""
    with pytest.raises(InputTooLongError, match="text: "):
        check_all(guard[0], "\ufdfa" * 1000, Policy())


def test_close_stops_a_check_and_gives_its_memory_back_after_it(tmp_path: Path) -> None:
    """Failure test 4."""
    entered, go_on = threading.Event(), threading.Event()

    def answer(seen: tuple[int, ...]) -> Float32:
        entered.set()
        go_on.wait(5)
        return answers(seen)

    with started(tmp_path / "bundle", answer) as (classifier, _):
        session = classifier.stream(StreamTask((QUESTION,), Target.RESPONSE, Policy()))
        session.add("Once upon a time")
        ticket = session.check_rest()
        assert ticket is not None
        assert entered.wait(5)
        session.close()
        session.close()  # harmless
        assert classifier.engine.kv_bytes_in_use > 0  # the check still uses it
        go_on.set()
        wait([ticket.future], 5)
        for _ in range(500):  # the future is done a moment before its callbacks
            time.sleep(0.01 if classifier.engine.kv_bytes_in_use else 0)
        session.add("and so on")
        with pytest.raises(CancelledError):
            session.check_rest()
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
