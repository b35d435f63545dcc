"""What decides without the model: the policy's lists, and the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.cache import CacheLimits, VerdictCache
from guard.classifier import Classifier, ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.errors import InvalidInputError, ModelOutputError, UnsupportedError
from guard.normalize import ViewKind
from guard.phrases import Phrase, PhraseList
from guard.policy import CustomCategory, Policy
from guard.testing import FakeRunner
from guard.verdict import DecidedBy, Verdict, Window

from .scripted import BAD_WORD, ROWS, started

DENY = Policy(deny=PhraseList((Phrase("project zeta", "zeta"),)))
ALLOW = Policy(allow=PhraseList((Phrase(f"the {BAD_WORD} city"),)))


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Classifier, FakeRunner]]:
    with started(tmp_path_factory.mktemp("bundle") / "bundle") as pair:
        yield pair


def task(text: str, policy: Policy | None = None) -> ClassifyTask:
    return ClassifyTask(Conversation((Message(Role.USER, text),)), Target.PROMPT, policy or Policy())


def fresh_cache(classifier: Classifier) -> VerdictCache:
    classifier.cache = VerdictCache(CacheLimits(entries=64), classifier.bundle.digest)
    return classifier.cache


def test_a_denied_phrase_is_unsafe_without_a_model_step(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, runner = guard
    steps = runner.steps
    found = classifier.classify(task("All about Pr0ject Zeta.", DENY))
    assert (found.verdict, found.unsafe_score, found.categories) == (Verdict.UNSAFE, 1.0, ())
    assert (found.decided_by, found.matched_entry, found.view) == (DecidedBy.DENY_LIST, "zeta", ViewKind.DELEETED)
    assert (found.window, found.passes, found.prompt_tokens) == (Window(0, 23, 0, 1), 0, 0)
    assert runner.steps == steps
    assert classifier.classify(task("All about project zetas.", DENY)).decided_by is DecidedBy.MODEL


def test_an_allowed_text_is_safe_only_as_a_whole(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, runner = guard
    steps = runner.steps
    found = classifier.classify(task(f" The {BAD_WORD} City ", ALLOW))
    assert (found.verdict, found.unsafe_score, found.matched_entry) == (Verdict.SAFE, 0.0, "0")
    assert (found.decided_by, runner.steps) == (DecidedBy.ALLOW_LIST, steps)
    more = classifier.classify(task(f"The {BAD_WORD} city, and more", ALLOW))
    assert (more.verdict, more.decided_by) == (Verdict.UNSAFE, DecidedBy.MODEL)


def test_lists_look_at_the_judged_message_alone(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, _ = guard
    turns = (Message(Role.USER, "project zeta"), Message(Role.ASSISTANT, "what is that?"))
    assert classifier.classify(ClassifyTask(Conversation(turns), Target.RESPONSE, DENY)).verdict is Verdict.SAFE


def test_deny_goes_before_allow(guard: tuple[Classifier, FakeRunner]) -> None:
    both = replace(DENY, allow=DENY.deny)
    assert guard[0].classify(task("project zeta", both)).decided_by is DecidedBy.DENY_LIST


def test_lists_do_not_make_a_wrong_request_right(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, _ = guard
    with pytest.raises(InvalidInputError, match="messages"):
        classifier.submit(replace(task("project zeta", DENY), target=Target.RESPONSE))
    with pytest.raises(InvalidInputError, match="excluded_categories"):
        classifier.submit(task("project zeta", replace(DENY, excluded_categories=frozenset({"S9"}))))


def test_policies_are_checked_against_the_model(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, _ = guard
    classifier.check_policy(Policy(category_thresholds={"S10": 0.1}))
    with pytest.raises(InvalidInputError, match=r"policy\.category_thresholds"):
        classifier.check_policy(Policy(category_thresholds={"S9": 0.1}))
    with pytest.raises(UnsupportedError):
        classifier.check_policy(Policy(custom_categories=(CustomCategory("S20", "Rudeness"),)))


def test_the_second_time_no_model_is_asked(guard: tuple[Classifier, FakeRunner]) -> None:
    classifier, runner = guard
    cache = fresh_cache(classifier)
    first = classifier.classify(task(f"a {BAD_WORD} thing"))
    steps = runner.steps
    second = classifier.classify(task(f"a {BAD_WORD} thing"))
    assert (first.decided_by, second.decided_by) == (DecidedBy.MODEL, DecidedBy.CACHE)
    assert (second.verdict, second.unsafe_score, second.categories) == (
        first.verdict,
        first.unsafe_score,
        first.categories,
    )
    assert second.cached_tokens == second.prompt_tokens
    assert (runner.steps, cache.hits, cache.misses) == (steps, 1, 1)
    assert classifier.classify(task(f"a {BAD_WORD} thing", Policy(threshold=0.99))).decided_by is DecidedBy.MODEL


def test_errors_are_not_remembered(tmp_path: Path) -> None:
    """Failure test 16: a failure does not become a verdict by being cached."""
    broken = np.full(len(ROWS), np.nan, np.float32)
    with started(tmp_path / "bundle", lambda seen: broken) as (classifier, runner):
        cache = fresh_cache(classifier)
        for _ in range(2):
            with pytest.raises(ModelOutputError):
                classifier.classify(task("fine"))
        assert (len(cache), cache.misses, runner.steps > 2) == (0, 2, True)


_WORDS = st.sampled_from([BAD_WORD, "bread", "water", "project zeta", "f0rbidden"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(_WORDS, _WORDS, st.sampled_from([Policy(), DENY, ALLOW])), min_size=1, max_size=12))
def test_no_verdict_crosses_between_requests(
    guard: tuple[Classifier, FakeRunner], items: list[tuple[str, str, Policy]]
) -> None:
    """Failure test 22: whatever runs beside it, and whatever the cache holds, a text has the verdict it has alone."""
    classifier, _ = guard
    fresh_cache(classifier)
    tickets = [classifier.submit(task(f"{first} {second}", policy)) for first, second, policy in items]
    for ticket, (first, second, policy) in zip(tickets, items, strict=True):
        text = f"{first} {second}"
        unsafe = BAD_WORD in text or "f0rbidden" in text or (policy is DENY and "project zeta" in text)
        assert (ticket.future.result(10).verdict is Verdict.UNSAFE) == unsafe
