"""Both clients and StreamClassify against a scripted server: what may be shown, and what may not be believed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from guard.client import (
    AsyncGuardClient,
    CallCancelledError,
    DeadlineExceededError,
    GuardClient,
    NoAnswerError,
    ServerBusyError,
    StreamOptions,
    StreamProgress,
    UnsafeTextError,
)
from guard.conversation import Message, Role, Target
from guard.errors import InvalidInputError
from guard.policy import PolicyChanges
from guard.v1 import moderation_pb2
from guard.verdict import Action, Verdict
from tests.unit.fake_server import FakeServer, failing, running
from tests.unit.streamed import Response, blocked, progress, releasing_all, safe_result, unsafe_result

STORY = ["Once ", "upon ", "été 🙂", " a ", "bomb ", "ticked."]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer({"StreamClassify": releasing_all()})) as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[GuardClient]:
    with GuardClient(server.address, timeout_s=10) as guard_client:
        yield guard_client


@pytest.fixture
async def aio(server: FakeServer) -> AsyncIterator[AsyncGuardClient]:
    async with AsyncGuardClient(server.address, timeout_s=10) as guard_client:
        yield guard_client


async def slowly(deltas: list[str]) -> AsyncIterator[str]:
    for delta in deltas:
        await asyncio.sleep(0.001)
        yield delta


def script(*responses: Response) -> Any:
    """A server that says this, whatever it is sent; it waits for the end of the text first."""

    def handler(requests: Iterator[Any], context: Any) -> Iterator[Response]:
        for _ in requests:
            pass
        yield from responses

    return handler


# ---------------------------------------------------------------------------------------------------- what is sent


def test_a_stream_sends_start_text_and_finish(server: FakeServer, client: GuardClient) -> None:
    stream = client.stream_classify(
        [Message(Role.USER, "hello")],
        ["a", "", "b" * 20_000],
        target=Target.PROMPT,
        policy=PolicyChanges(threshold=0.7),
        policy_name="strict",
        options=StreamOptions(check_every_tokens=16, at_sentence_ends=True, check_at_latest_after_s=0.25),
        model="m",
        request_id="r-7",
    )
    assert stream.result().verdict is Verdict.SAFE
    first, *texts, last = server.requests("StreamClassify")
    start = first.start
    assert (start.request_id, start.model, start.policy_name, start.policy.threshold) == ("r-7", "m", "strict", 0.7)
    assert start.target == moderation_pb2.TARGET_PROMPT
    assert [message.content for message in start.messages] == ["hello"]
    assert (start.check_every_tokens, start.at_sentence_ends) == (16, True)
    assert start.check_at_latest_after.ToMilliseconds() == 250
    assert "".join(step.text for step in texts) == "a" + "b" * 20_000
    assert all(len(step.text.encode()) <= 64 << 10 for step in texts)
    assert last.WhichOneof("step") == "finish"


def test_what_is_not_said_is_left_to_the_server(server: FakeServer, client: GuardClient) -> None:
    assert list(client.moderated([], ["a"])) == ["a"]
    start = server.requests("StreamClassify")[0].start
    assert start.target == moderation_pb2.TARGET_RESPONSE
    assert not start.HasField("policy")
    assert not start.HasField("check_every_tokens")
    assert not start.HasField("check_at_latest_after")


# ---------------------------------------------------------------------------------------------------- what may be shown


def test_released_text_comes_out_and_the_rest_does_not(client: GuardClient) -> None:
    seen = []
    with pytest.raises(UnsafeTextError) as error:
        for text in client.moderated("Tell me a story", STORY):
            seen.append(text)
    assert seen == STORY[:4]
    assert [found.code for found in error.value.categories] == ["S2"]
    assert error.value.judgement.verdict is Verdict.UNSAFE
    assert "Non-Violent Crimes" in str(error.value)
    assert "bomb" not in str(error.value)


async def test_released_text_asyncio(aio: AsyncGuardClient) -> None:
    for deltas in (STORY, slowly(STORY)):
        seen = []
        with pytest.raises(UnsafeTextError):
            async for text in aio.moderated("Tell me a story", deltas):
                seen.append(text)
        assert "".join(seen) == "".join(STORY[:4])


def test_checks_and_result(client: GuardClient) -> None:
    stream = client.stream_classify("Tell me a story", STORY)
    checks = list(stream)
    assert all(isinstance(check, StreamProgress) for check in checks)
    assert [check.text for check in checks] == [*STORY[:4], ""]
    assert checks[-1].action is Action.BLOCK
    assert checks[-1].judged_bytes > checks[-1].released_bytes
    assert stream.result().verdict is Verdict.UNSAFE


async def test_checks_and_result_asyncio(aio: AsyncGuardClient) -> None:
    stream = aio.stream_classify("Tell me a story", slowly(STORY[:4]))
    assert "".join([check.text async for check in stream]) == "".join(STORY[:4])
    assert (await stream.result()).verdict is Verdict.SAFE
    assert (await aio.stream_classify("Tell me a story", STORY).result()).verdict is Verdict.UNSAFE


def test_the_result_releases_white_space_at_the_end(server: FakeServer, client: GuardClient) -> None:
    server.handlers["StreamClassify"] = script(progress(4), safe_result())
    assert list(client.moderated([], ["Once", "  \n"])) == ["Once", "  \n"]


def test_shadow_mode_blocks_nothing(server: FakeServer, client: GuardClient) -> None:
    unsafe, report = moderation_pb2.VERDICT_UNSAFE, moderation_pb2.ACTION_REPORT
    result = safe_result()
    result.result.verdict, result.result.action = unsafe, report
    server.handlers["StreamClassify"] = script(progress(4, verdict=unsafe, action=report), result)
    stream = client.stream_classify([], ["Once upon"])
    assert "".join(stream.released()) == "Once upon"
    assert stream.result().verdict is Verdict.UNSAFE


async def test_a_writer_that_is_slow_does_not_hold_up_the_verdict(aio: AsyncGuardClient) -> None:
    async def stuck() -> AsyncIterator[str]:
        yield "bomb"
        await asyncio.sleep(60)

    async with asyncio.timeout(5):
        with pytest.raises(UnsafeTextError):
            async for _ in aio.moderated([], stuck()):
                pass


def test_a_writer_that_is_slow_does_not_hold_up_the_verdict_blocking(client: GuardClient) -> None:
    free = threading.Event()

    def stuck() -> Iterator[str]:
        yield "bomb"
        free.wait(5)

    with pytest.raises(UnsafeTextError):
        list(client.moderated([], stuck()))
    assert not free.is_set()
    free.set()


# ---------------------------------------------------------------------------------------------------- what may not


BROKEN = {
    "nothing at all": [],
    "no result": [progress(4)],
    "an empty step": [Response()],
    "no verdict": [progress(4, verdict=0), safe_result()],
    "no action": [progress(4, action=0), safe_result()],
    "a verdict that its action contradicts": [progress(4, action=moderation_pb2.ACTION_BLOCK), safe_result()],
    "a score that is none": [progress(4, unsafe_score=float("nan")), safe_result()],
    "more text than was sent": [progress(100), safe_result()],
    "text that falls back": [progress(4), progress(3), safe_result()],
    "half a character": [progress(5), safe_result()],
    "more after its result": [progress(4), safe_result(), progress(4)],
    "more after it blocked": [blocked(2, 4), progress(4), safe_result()],
    "a result without an action": [
        progress(4),
        Response(result=moderation_pb2.ClassifyResponse(verdict=moderation_pb2.VERDICT_SAFE)),
    ],
}


@pytest.mark.parametrize("responses", BROKEN.values(), ids=BROKEN)
async def test_what_cannot_be_true_is_no_answer(
    server: FakeServer, client: GuardClient, aio: AsyncGuardClient, responses: list[Response]
) -> None:
    """Failure test 16, at the client: and no text is shown because of it."""
    server.handlers["StreamClassify"] = script(*responses)
    with pytest.raises(NoAnswerError):
        client.stream_classify([], ["Onceé"]).result()
    with pytest.raises(NoAnswerError):
        await aio.stream_classify([], ["Onceé"]).result()
    seen: list[str] = []
    with pytest.raises(NoAnswerError):
        seen.extend(client.moderated([], ["Onceé"]))
    assert "é" not in "".join(seen)


def test_a_safe_result_before_the_end_of_the_text_is_no_answer(server: FakeServer, client: GuardClient) -> None:
    free = threading.Event()

    def hasty(requests: Iterator[Any], context: Any) -> Iterator[Response]:
        next(requests)
        next(requests)
        yield progress(4)
        yield safe_result()

    def deltas() -> Iterator[str]:
        yield "Once"
        free.wait(5)
        yield "and never judged"

    server.handlers["StreamClassify"] = hasty
    with pytest.raises(NoAnswerError):
        list(client.moderated([], deltas()))
    free.set()


def test_a_blocked_result_wins_over_safe_checks(server: FakeServer, client: GuardClient) -> None:
    server.handlers["StreamClassify"] = script(progress(4), unsafe_result())
    seen = []
    with pytest.raises(UnsafeTextError):
        for text in client.moderated([], ["Once upon"]):
            seen.append(text)
    assert seen == ["Once"]


# ---------------------------------------------------------------------------------------------------- failures


async def test_errors_are_typed(server: FakeServer, client: GuardClient, aio: AsyncGuardClient) -> None:
    def busy(requests: Iterator[Any], context: Any) -> Iterator[Response]:
        failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")(None, context)
        yield progress(0)

    server.handlers["StreamClassify"] = busy
    with pytest.raises(ServerBusyError):
        list(client.moderated([], STORY))
    with pytest.raises(ServerBusyError):
        await aio.stream_classify([], STORY).result()


async def test_the_callers_own_error_comes_back_and_ends_the_stream(
    server: FakeServer, client: GuardClient, aio: AsyncGuardClient
) -> None:
    def broken() -> Iterator[str]:
        yield "Once "
        raise ZeroDivisionError("in the caller's model")

    with pytest.raises(ZeroDivisionError):
        list(client.moderated([], broken()))
    with pytest.raises(ZeroDivisionError):
        await aio.stream_classify([], broken()).result()
    with pytest.raises(InvalidInputError, match="surrogate"):
        list(client.moderated([], ["\ud800"]))
    assert "finish" not in [request.WhichOneof("step") for request in server.requests("StreamClassify")]


async def test_deadline_and_cancel(server: FakeServer, client: GuardClient, aio: AsyncGuardClient) -> None:
    gone = threading.Event()

    def wait(requests: Iterator[Any], context: Any) -> Iterator[Response]:
        context.add_callback(gone.set)
        next(requests)
        next(requests)
        yield progress(4)
        gone.wait(5)

    server.handlers["StreamClassify"] = wait
    with pytest.raises(DeadlineExceededError):
        list(client.moderated([], ["Once"], timeout_s=0.3))
    gone.clear()
    stream = client.stream_classify([], ["Once"])
    assert next(iter(stream)).text == "Once"
    stream.cancel()
    with pytest.raises(CallCancelledError):
        stream.result()
    assert gone.wait(5)
    gone.clear()

    async def ask() -> None:
        async for _ in aio.moderated([], ["Once"]):
            pass

    task = asyncio.create_task(ask())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(gone.wait, 5)


def test_leaving_early_cancels(server: FakeServer, client: GuardClient) -> None:
    gone = threading.Event()

    def wait(requests: Iterator[Any], context: Any) -> Iterator[Response]:
        context.add_callback(gone.set)
        next(requests)
        next(requests)
        yield progress(4)
        gone.wait(5)

    server.handlers["StreamClassify"] = wait
    texts = client.moderated([], ["Once"])
    assert next(texts) == "Once"
    del texts
    assert gone.wait(5)
