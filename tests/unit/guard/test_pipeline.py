from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifier import Classifier
from guard.conversation import Conversation, Message, Role, Target, ToolCall
from guard.engine.sequence import Ticket
from guard.engine.settings import EngineSettings
from guard.errors import (
    CancelledError,
    DeadlineError,
    InvalidInputError,
    ModelOutputError,
    OverloadedError,
)
from guard.generation import Delta, FinishReason, GenerateTask, Generation, TokenLogprob
from guard.pipeline import GuardedGenerator, GuardedTicket, Moderation, guard_turns
from guard.policy import Policy, PolicyAction
from guard.streaming import StreamTask
from guard.testing import FakeRunner
from guard.verdict import Action, Verdict

from .guarded import (
    BROKEN,
    FORBIDDEN_QUESTION,
    LIMITS,
    OFTEN,
    QUESTION,
    STORY,
    Slow,
    Writer,
    deltas_of,
    run,
    text_of,
    until,
    words,
)
from .scripted import BAD_WORD, started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Classifier, Slow]]:
    slow = Slow()
    with started(tmp_path_factory.mktemp("guard") / "bundle", slow, limits=LIMITS) as (classifier, _):
        yield classifier, slow


@pytest.fixture
def guard(shared: tuple[Classifier, Slow]) -> Iterator[Classifier]:
    """The shared guard, all of whose memory must be free again."""
    yield shared[0]
    until(lambda: shared[0].engine.kv_bytes_in_use == 0)


@pytest.fixture
def slow(shared: tuple[Classifier, Slow]) -> Iterator[Slow]:
    slow = shared[1]
    slow.asked.clear()
    yield slow
    slow.pause_s = 0.0
    slow.may_go.set()


def test_a_safe_text_comes_whole_in_pieces_that_were_judged(guard: Classifier) -> None:
    writer = Writer(words(STORY))
    result, released = run(guard, writer)
    assert text_of(released) == result.text == STORY + " "
    assert len(released) > 4
    assert [delta.completion_tokens for delta in released] == sorted(delta.completion_tokens for delta in released)
    assert released[-1].completion_tokens == len(writer.deltas)
    assert result.finish_reason is FinishReason.STOP
    assert result.input is not None and result.input.verdict is Verdict.SAFE
    assert result.output is not None and result.output.verdict is Verdict.SAFE
    assert result.outputs == (result.output,)
    assert (result.prompt_tokens, result.cached_tokens, result.accepted_tokens) == (7, 3, 1)
    assert result.completion_tokens == len(writer.deltas) + 1
    assert (result.queue_s, result.first_token_s, result.model_s) == (0.1, 0.2, 0.3)


def test_an_unsafe_input_is_not_answered(guard: Classifier) -> None:
    writer = Writer(words(STORY * 20), pause_s=0.005)
    result, released = run(guard, writer, task=FORBIDDEN_QUESTION)
    assert released == []
    assert (result.text, result.finish_reason) == ("", FinishReason.CONTENT_FILTER)
    assert result.input is not None and result.input.verdict is Verdict.UNSAFE
    assert any(category.flagged for category in result.input.categories)
    assert (result.output, result.outputs) == (None, ())
    assert writer.ended.wait(1)
    assert writer.written < len(writer.deltas)


def test_both_models_begin_at_once_and_nothing_leaves_before_the_input_is_judged(guard: Classifier, slow: Slow) -> None:
    for moderation in (OFTEN, Moderation(check_output=False)):
        slow.may_go.clear()
        writer, released = Writer(words(STORY)), list[Delta]()
        ticket = GuardedGenerator(writer, guard).submit(QUESTION, moderation, released.append)
        assert slow.asked.wait(5) and writer.ended.wait(5)
        time.sleep(0.05)
        assert released == [] and not ticket.future.done()
        slow.may_go.set()
        assert ticket.future.result(10).text == text_of(released) == STORY + " "


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("guard_pause_s", [0.0, 0.01])
def test_a_block_stops_the_writer(guard: Classifier, slow: Slow, place: str, guard_pause_s: float) -> None:
    slow.pause_s = guard_pause_s
    before = {"first": "", "middle": STORY + " ", "last": STORY + " "}[place]
    after = "" if place == "last" else (" " + STORY) * 20
    last = Delta(BAD_WORD, len(before.split()) + 1)  # at the very end, no word's end follows
    writer = Writer([*words(before.rstrip()), last] if place == "last" else words(before + BAD_WORD + after), 0.002)
    result, released = run(guard, writer)
    assert result.finish_reason is FinishReason.CONTENT_FILTER
    assert result.text == text_of(released)
    assert before.startswith(result.text) and len(result.text) >= len(before) - 20
    assert result.output is not None and result.output.verdict is Verdict.UNSAFE
    assert next(category.code for category in result.output.categories if category.flagged) == "S2"
    assert result.input is not None and result.input.verdict is Verdict.SAFE
    assert result.withheld().text == "" and result.withheld().output == result.output
    assert result.prompt_tokens == 7
    if place == "last":
        assert result.accepted_tokens == 1  # it was written to its end
        return
    stopped_at = writer.written
    assert result.choices[0].completion_tokens <= stopped_at + 1
    assert result.first_token_s > 0 and result.model_s > 0
    assert writer.ended.wait(1)
    assert writer.written <= stopped_at + 1 < len(writer.deltas)


WORDS = st.lists(
    st.sampled_from(["once", "upon", "a", "time.", "été", "🙂", "\n", "there was", BAD_WORD, "x" * 70]), min_size=1
)


@settings(deadline=None, max_examples=60)
@given(parts=WORDS, cuts=st.lists(st.integers(0, 10_000)), seed=st.integers(0, 2**32))
def test_whatever_the_split_and_the_timing_only_what_was_judged_safe_leaves(
    shared: tuple[Classifier, Slow], parts: list[str], cuts: list[int], seed: int
) -> None:
    """What leaves is what a stream of the same text releases that is judged as a whole, check by check."""
    classifier, slow = shared
    text, chance = " ".join(parts), Random(seed)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    slow.pause_s = 0.0
    safe, blocked = judged_safe(classifier, text)
    slow.pause_s = chance.choice([0.0, 0.0005, 0.002])
    writer = Writer(deltas_of([text[start:end] for start, end in pairwise(places)]), chance.choice([0.0, 0.0003]))
    result, released = run(classifier, writer)
    assert text_of(released) == result.text == (safe if blocked else text)
    assert (result.finish_reason is FinishReason.CONTENT_FILTER) == blocked == (BAD_WORD in parts)
    assert BAD_WORD not in result.text
    shown = 0
    for delta in released:
        shown += len(delta.text)
        told = sum(places[1 : delta.completion_tokens + 1][-1:]) if delta.completion_tokens else 0
        assert told <= shown  # no token is counted before its text has left


def judged_safe(classifier: Classifier, text: str) -> tuple[str, bool]:
    turns = guard_turns(QUESTION)
    session = classifier.stream(StreamTask(turns, Target.RESPONSE, Policy(), every_tokens=8))
    session.add(text)
    released = 0
    try:
        while (ticket := session.next_check() or session.check_rest()) is not None:
            check = ticket.future.result(10)
            released = check.released
            if check.action is Action.BLOCK:
                return text[:released], True
        return text[:released], False
    finally:
        session.close()


def test_shadow_mode_reports_and_blocks_nothing(guard: Classifier) -> None:
    moderation = replace(OFTEN, policy=Policy(action=PolicyAction.SHADOW))
    writer = Writer(words(f"{STORY} {BAD_WORD} {STORY}"))
    result, released = run(guard, writer, moderation, FORBIDDEN_QUESTION)
    assert text_of(released) == result.text == f"{STORY} {BAD_WORD} {STORY} "
    assert result.finish_reason is FinishReason.STOP
    for judgement in (result.input, result.output):
        assert judgement is not None and judgement.verdict is Verdict.UNSAFE


def test_white_space_alone_is_nothing_to_judge(guard: Classifier) -> None:
    result, released = run(guard, Writer(deltas_of([" ", "\n"])))
    assert text_of(released) == result.text == " \n"
    assert (result.output, result.outputs) == (None, (None,))


@pytest.mark.parametrize("moderation", [Moderation(check_output=False), Moderation(check_input=False, every_tokens=8)])
def test_each_check_alone(guard: Classifier, moderation: Moderation) -> None:
    for task, text in ((QUESTION, STORY), (FORBIDDEN_QUESTION, STORY), (QUESTION, BAD_WORD)):
        result, released = run(guard, Writer(words(text)), moderation, task)
        unsafe_input = moderation.check_input and task is FORBIDDEN_QUESTION
        # The scripted guard reads the question with the text.
        unsafe_output = moderation.check_output and (task is FORBIDDEN_QUESTION or text is BAD_WORD)
        assert (result.finish_reason is FinishReason.CONTENT_FILTER) == (unsafe_input or unsafe_output)
        assert text_of(released) == result.text == ("" if unsafe_input or unsafe_output else text + " ")
        assert (result.input is None) == (not moderation.check_input)
        assert (result.output is None) == (not moderation.check_output)


def test_logprobs_pass_with_an_input_check_only(guard: Classifier) -> None:
    task = replace(QUESTION, logprobs=0)
    delta = Delta("once", 1, logprobs=(TokenLogprob(5, "once", -0.1),))
    assert run(guard, Writer([delta]), Moderation(check_output=False), task)[1] == [delta]
    with pytest.raises(InvalidInputError, match="logprobs"):
        run(guard, Writer([delta]), OFTEN, task)


def test_each_choice_is_judged_by_itself(guard: Classifier) -> None:
    told = [f"{STORY} {BAD_WORD} {STORY}", STORY, f"{BAD_WORD} {STORY}"]
    each = [deltas_of([word + " " for word in text.split(" ")], index) for index, text in enumerate(told)]
    mixed = sorted((delta for deltas in each for delta in deltas), key=lambda delta: delta.completion_tokens)
    result, released = run(guard, Writer(mixed), task=replace(QUESTION, choices=3))
    assert [text_of(released, index) for index in range(3)] == [choice.text for choice in result.choices]
    assert [choice.finish_reason for choice in result.choices] == [
        FinishReason.CONTENT_FILTER,
        FinishReason.STOP,
        FinishReason.CONTENT_FILTER,
    ]
    assert told[0].startswith(result.choices[0].text) and BAD_WORD not in result.choices[0].text
    assert (result.choices[1].text, result.choices[2].text) == (STORY + " ", "")
    assert [output.verdict for output in result.outputs if output] == [Verdict.UNSAFE, Verdict.SAFE, Verdict.UNSAFE]
    assert result.output is not None and result.output.verdict is Verdict.UNSAFE
    assert [choice.text for choice in result.withheld().choices] == ["", STORY + " ", ""]


def test_the_writer_is_stopped_when_its_last_choice_is_blocked(guard: Classifier) -> None:
    text = f"{BAD_WORD} {STORY}" + f" {STORY}" * 20
    each = [deltas_of([word + " " for word in text.split(" ")], index) for index in range(2)]
    writer = Writer([delta for pair in zip(*each, strict=True) for delta in pair], pause_s=0.002)
    result, released = run(guard, writer, task=replace(QUESTION, choices=2))
    assert released == []
    assert {choice.finish_reason for choice in result.choices} == {FinishReason.CONTENT_FILTER}
    assert len(result.outputs) == 2
    assert writer.ended.wait(1)
    assert writer.written < len(writer.deltas)


def test_a_guard_that_breaks_ends_the_generation(guard: Classifier) -> None:
    text = f"{STORY} {BROKEN} {STORY}" + f" {STORY}" * 20
    writer, released = Writer(words(text), pause_s=0.002), list[Delta]()
    ticket = GuardedGenerator(writer, guard).submit(QUESTION, OFTEN, released.append)
    with pytest.raises(ModelOutputError):
        ticket.future.result(10)
    assert BROKEN not in text_of(released) and STORY.startswith(text_of(released).rstrip())
    assert writer.ended.wait(1)
    assert writer.written < len(writer.deltas)
    with pytest.raises(ModelOutputError):
        run(guard, Writer(words(STORY)), task=GenerateTask(prompt=f"all {BROKEN}"))


def test_what_the_guard_cannot_read_is_the_models_fault_not_the_callers(guard: Classifier) -> None:
    """U+FDFA is one character of three bytes, and a whole sentence when it is normalized."""
    with pytest.raises(ModelOutputError, match="cannot be judged: "):
        run(guard, Writer(deltas_of(["\ufdfa" * 1000])))


def test_a_writer_that_fails_fails_the_call(guard: Classifier) -> None:
    class Failing(Writer):
        def _generation(self, choices: int) -> Generation:
            raise AssertionError("not reached")

        def _write(self, ticket: Ticket[Generation], task: GenerateTask, on_delta: Callable[[Delta], None]) -> None:
            on_delta(Delta("once upon", 1))
            ticket.future.set_exception(ModelOutputError("the model's logits are not finite"))

    with pytest.raises(ModelOutputError, match="not finite"):
        run(guard, Failing([]))


def test_a_deadline_that_the_guard_misses(guard: Classifier, slow: Slow) -> None:
    slow.pause_s = 0.2
    released: list[Delta] = []
    writer = Writer(words(STORY))
    ticket = GuardedGenerator(writer, guard).submit(QUESTION, OFTEN, released.append, time.monotonic() + 0.1)
    with pytest.raises(DeadlineError):
        ticket.future.result(10)
    assert released == []


class Stage:
    """Brings a generation to a point and holds it there."""

    def __init__(self, slow: Slow) -> None:
        self.slow = slow
        self.writer = Writer(words(STORY * 10), pause_s=0.001)
        self.released: list[Delta] = []

    def before_the_input_is_judged(self) -> None:
        assert self.slow.asked.wait(5)

    def while_it_writes(self) -> None:
        until(lambda: self.writer.written > 3)
        self.writer.may_go.clear()

    def after_a_release(self) -> None:
        until(lambda: len(self.released) > 1)
        self.writer.may_go.clear()

    def during_a_check(self) -> None:
        until(lambda: len(self.released) > 0)
        self.slow.may_go.clear()
        self.slow.asked.clear()
        assert self.slow.asked.wait(5)


@pytest.mark.parametrize(
    "stage", ["before_the_input_is_judged", "while_it_writes", "after_a_release", "during_a_check"]
)
def test_cancel_stops_both_models_at_every_stage(guard: Classifier, slow: Slow, stage: str) -> None:
    point = Stage(slow)
    if stage == "before_the_input_is_judged":
        slow.may_go.clear()
    ticket = GuardedGenerator(point.writer, guard).submit(QUESTION, OFTEN, point.released.append)
    getattr(point, stage)()
    shown = len(point.released)
    ticket.cancel()
    ticket.cancel()  # harmless
    slow.may_go.set()
    with pytest.raises(CancelledError):
        ticket.future.result(5)
    assert point.writer.ended.wait(5)
    assert point.writer.written < len(point.writer.deltas)
    assert len(point.released) <= shown + 1
    until(lambda: guard.engine.kv_bytes_in_use == 0 and guard.engine.jobs == 0)


def test_cancel_after_the_end_changes_nothing(guard: Classifier) -> None:
    ticket = GuardedGenerator(Writer(words(STORY)), guard).submit(QUESTION, OFTEN, lambda delta: None)
    result = ticket.future.result(10)
    ticket.cancel()
    assert not ticket.future.cancel()
    assert ticket.future.result() is result


def test_no_room_for_the_guard_is_an_overload_at_once(tmp_path: Path) -> None:
    """Nothing waits while it holds memory, so two that hold some each cannot wait for each other."""
    slow = Slow()
    with started(tmp_path / "sizes", limits=LIMITS) as (classifier, _):
        session = classifier.stream(StreamTask(guard_turns(QUESTION), Target.RESPONSE, Policy(), every_tokens=8))
        stream_bytes = classifier.engine.kv_bytes_in_use
        session.close()
    room = EngineSettings(prefill_chunk=200, kv_bytes=2 * stream_bytes - 1)
    with started(tmp_path / "guard", slow, room, LIMITS) as (classifier, _):
        slow.may_go.clear()
        first = GuardedGenerator(Writer(words(STORY)), classifier).submit(QUESTION, OFTEN, lambda delta: None)
        assert 0 < classifier.engine.kv_bytes_in_use - stream_bytes < stream_bytes  # of the input's check
        refused = Writer(words(STORY))
        for moderation in (OFTEN, Moderation(check_output=False)):
            with pytest.raises(OverloadedError, match="no room"):
                GuardedGenerator(refused, classifier).submit(
                    replace(QUESTION, conversation=Conversation((Message(Role.USER, "long " * 60),))),
                    moderation,
                    lambda delta: None,
                )
        assert refused.submitted == 0
        slow.may_go.set()
        assert first.future.result(10).text == STORY + " "
        until(lambda: classifier.engine.kv_bytes_in_use == 0)
        assert run(classifier, refused)[0].text == STORY + " "
        until(lambda: classifier.engine.kv_bytes_in_use == 0)


def test_a_writer_that_refuses_leaves_the_guard_free(guard: Classifier) -> None:
    class Full(Writer):
        def submit(
            self,
            task: GenerateTask,
            on_delta: Callable[[Delta], None],
            deadline: float | None = None,
            caller: str = "",
        ) -> Ticket[Generation]:
            raise OverloadedError("8 requests are waiting, the limit", 1.0)

    with pytest.raises(OverloadedError, match="waiting"):
        run(guard, Full([]))
    until(lambda: guard.engine.kv_bytes_in_use == 0 and guard.engine.jobs == 0)


def test_no_thread_leaves_nothing_running(guard: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread(Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    writer = Writer(words(STORY * 20), pause_s=0.001)
    with monkeypatch.context() as patch:
        patch.setattr("guard.pipeline.Thread", NoThread)
        with pytest.raises(RuntimeError):
            run(guard, writer)
    assert writer.ended.wait(5)
    assert writer.written < len(writer.deltas)
    until(lambda: guard.engine.kv_bytes_in_use == 0 and guard.engine.jobs == 0)


def test_many_at_once_each_get_their_own(tmp_path: Path) -> None:
    with started(tmp_path / "guard", limits=LIMITS) as (classifier, runner):
        tickets: list[tuple[int, GuardedTicket, list[Delta]]] = []
        for index in range(12):
            text = f"{index} {STORY}" + (f" {BAD_WORD}" if index % 3 == 0 else "")
            released: list[Delta] = []
            pipeline = GuardedGenerator(Writer(words(text), pause_s=0.001), classifier)
            tickets.append((index, pipeline.submit(QUESTION, OFTEN, released.append), released))
        for index, ticket, released in tickets:
            result = ticket.future.result(20)
            assert text_of(released) == result.text
            assert result.text.startswith(f"{index} once")
            assert (result.finish_reason is FinishReason.CONTENT_FILTER) == (index % 3 == 0)
        until(lambda: classifier.engine.kv_bytes_in_use == 0)
        assert isinstance(runner, FakeRunner) and runner.steps > 12


USER, ASSISTANT, SYSTEM, TOOL = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([(USER, "a")], [(USER, "a")]),
        ([(SYSTEM, "s"), (USER, "a"), (ASSISTANT, "b"), (USER, "c")], [(USER, "a"), (ASSISTANT, "b"), (USER, "c")]),
        ([(USER, "a"), (USER, "b")], [(USER, "a\n\nb")]),
        ([(USER, "a"), (ASSISTANT, ""), (TOOL, "t")], [(USER, "a")]),
        ([(USER, "a"), (ASSISTANT, "b"), (TOOL, "t")], [(USER, "a")]),
        ([(USER, "a"), (ASSISTANT, ""), (TOOL, "t"), (USER, "b")], [(USER, "a\n\nb")]),
        (
            [(ASSISTANT, "a"), (ASSISTANT, "b"), (TOOL, "t"), (ASSISTANT, "c"), (USER, "d")],
            [(ASSISTANT, "a\n\nb\n\nc"), (USER, "d")],
        ),
        ([(SYSTEM, "s")], []),
    ],
)
def test_the_guard_is_shown_turns_of_user_and_assistant(
    messages: list[tuple[Role, str]], turns: list[tuple[Role, str]]
) -> None:
    call = (ToolCall("1", "bake", "{}"),)
    conversation = Conversation(tuple(Message(role, text, () if text else call) for role, text in messages))
    assert [(turn.role, turn.content) for turn in guard_turns(GenerateTask(conversation))] == turns


def test_a_plain_prompt_is_the_users(guard: Classifier) -> None:
    assert guard_turns(GenerateTask(prompt="Once upon")) == (Message(USER, "Once upon"),)
    result, _ = run(guard, Writer([]), task=GenerateTask(prompt=f"The {BAD_WORD} city"))
    assert result.finish_reason is FinishReason.CONTENT_FILTER


def test_bad_options_name_the_field(guard: Classifier) -> None:
    with pytest.raises(InvalidInputError, match="moderation: expected check_input"):
        Moderation(check_input=False, check_output=False)
    with pytest.raises(InvalidInputError, match=r"moderation\.check_every_tokens: expected 8 to 1024"):
        Moderation(every_tokens=7)
    writer = Writer([])
    with pytest.raises(InvalidInputError, match=r"moderation\.check_input: there is no user message"):
        run(guard, writer, task=GenerateTask(Conversation((Message(SYSTEM, "s"),))))
    assert writer.submitted == 0
