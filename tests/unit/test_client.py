"""The blocking client against a scripted server in this process: real gRPC, no model."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from guard.client import (
    AppliedPolicy,
    Classification,
    DeadlineExceededError,
    Delta,
    FieldViolation,
    GenerationOptions,
    GuardClient,
    GuardClientError,
    ModelNotLoadedOnServerError,
    NoAnswerError,
    NotPermittedError,
    PolicyInfo,
    RequestRejectedError,
    ServerBusyError,
    ServerFailedError,
    ServerUnavailableError,
    UnsupportedByServerError,
    VerdictCacheInfo,
    tls_credentials,
)
from guard.conversation import Message, Role, Target
from guard.errors import GuardError, InvalidInputError
from guard.normalize import ViewKind
from guard.phrases import Phrase, PhraseList
from guard.policy import CustomCategory, Policy, PolicyAction, PolicyChanges
from guard.v1 import generation_pb2, model_pb2, moderation_pb2
from guard.verdict import Action, DecidedBy, Verdict, Window
from tests.unit.fake_server import FakeServer, failing, judged, running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[GuardClient]:
    with GuardClient(server.address, timeout_s=10) as guard_client:
        yield guard_client


def test_classify_sends_the_conversation_and_reads_the_answer(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Classify"] = lambda request, context: judged()
    policy = Policy(
        threshold=0.7,
        category_thresholds={"S2": 0.3},
        excluded_categories=frozenset({"S9", "S5"}),
        custom_categories=(CustomCategory("S20", "Spoilers", "Gives a plot away."),),
    )
    messages = [Message(Role.USER, "hello"), Message(Role.ASSISTANT, "hi\u200b there")]

    result = client.classify(messages, policy=policy, exact=True, model="m", request_id="r-1")

    (request,) = server.requests("Classify")
    assert [(m.role, m.content) for m in request.messages] == [
        (moderation_pb2.ROLE_USER, "hello"),
        (moderation_pb2.ROLE_ASSISTANT, "hi\u200b there"),
    ]
    assert (request.request_id, request.model) == ("r-1", "m")
    assert request.mode == moderation_pb2.CLASSIFICATION_MODE_EXACT
    assert request.policy.threshold == 0.7
    assert dict(request.policy.category_thresholds) == {"S2": 0.3}
    assert list(request.policy.excluded_categories) == ["S5", "S9"]
    assert request.policy.custom_categories[0].description == "Gives a plot away."

    assert result.verdict is Verdict.UNSAFE
    assert result.unsafe_score == 0.9
    assert result.target is Target.PROMPT
    assert result.mode == "one_pass"
    assert not result.forged_delimiters
    assert [(c.code, c.flagged) for c in result.categories] == [("S1", False), ("S2", True)]
    assert result.top_category is not None and result.top_category.code == "S2"
    assert (result.usage.prompt_tokens, result.usage.cached_tokens) == (120, 80)
    assert result.timings.total_s == 0.25
    assert result.timings.first_token_s is None
    assert (result.action, result.decided_by, result.matched_entry) == (Action.BLOCK, DecidedBy.MODEL, None)
    assert result.policy == AppliedPolicy("default", "d1")


def test_single_fields_go_before_those_of_a_named_policy(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Classify"] = lambda request, context: judged(
        action=moderation_pb2.ACTION_REPORT, decided_by=moderation_pb2.DECIDED_BY_DENY_LIST, matched_entry="3"
    )
    changes = PolicyChanges(excluded_categories=frozenset({"S6"}), action=PolicyAction.SHADOW)
    result = client.classify("hello", policy=changes, policy_name="strict")
    (request,) = server.requests("Classify")
    assert request.policy_name == "strict"
    assert request.policy == moderation_pb2.Policy(
        excluded_categories=["S6"], action=moderation_pb2.POLICY_ACTION_SHADOW
    )
    assert (result.action, result.decided_by, result.matched_entry) == (Action.REPORT, DecidedBy.DENY_LIST, "3")


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (PolicyChanges(threshold=float("nan")), "policy.threshold"),
        (Policy(deny=PhraseList((Phrase("x"),))), "policy"),
        (PolicyChanges(allow=PhraseList((Phrase("x"),))), "policy"),
    ],
)
def test_what_no_request_can_say_is_refused_here(
    server: FakeServer, client: GuardClient, policy: Policy | PolicyChanges, field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        client.classify("hello", policy=policy)
    assert caught.value.field == field
    assert server.calls == []


def test_list_policies(server: FakeServer, client: GuardClient) -> None:
    policy = moderation_pb2.Policy(
        threshold=0.4,
        category_thresholds={"S1": 0.2},
        excluded_categories=["S6"],
        custom_categories=[moderation_pb2.CustomCategory(code="S3", name="Spam")],
        action=moderation_pb2.POLICY_ACTION_SHADOW,
    )
    named = moderation_pb2.NamedPolicy(name="trial", digest="d", policy=policy, deny_entries=2, is_default=True)
    server.handlers["ListPolicies"] = lambda request, context: moderation_pb2.ListPoliciesResponse(policies=[named])
    assert client.list_policies() == (
        PolicyInfo(
            "trial", "d", 0.4, {"S1": 0.2}, ("S6",), (CustomCategory("S3", "Spam"),), PolicyAction.SHADOW, 2, 0, True
        ),
    )
    named.policy.action = moderation_pb2.POLICY_ACTION_UNSPECIFIED
    with pytest.raises(NoAnswerError, match=r"policy\.action"):
        client.list_policies()


def test_a_string_is_one_user_message_and_no_policy_stays_unset(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Classify"] = lambda request, context: judged(
        signals=[moderation_pb2.INPUT_SIGNAL_FORGED_DELIMITER],
        mode=moderation_pb2.CLASSIFICATION_MODE_EXACT,
        view=moderation_pb2.TEXT_VIEW_DELEETED,
        window=moderation_pb2.TextWindow(start=7, end=9, index=1, count=2),
        passes=4,
    )
    result = client.classify("hello")
    (request,) = server.requests("Classify")
    assert [(m.role, m.content) for m in request.messages] == [(moderation_pb2.ROLE_USER, "hello")]
    assert not request.HasField("policy")
    assert result.forged_delimiters
    assert result.mode == "exact"
    assert (result.view, result.window, result.passes) == (ViewKind.DELEETED, Window(7, 9, 1, 2), 4)


def test_a_view_that_is_newer_than_this_client_does_not_cost_the_verdict(
    server: FakeServer, client: GuardClient
) -> None:
    server.handlers["Classify"] = lambda request, context: judged(view=99, decided_by=99, screening=99)
    result = client.classify("hello")
    assert (result.view, result.decided_by, result.screening) == (None, None, None)
    assert result.verdict is Verdict.UNSAFE


@pytest.mark.parametrize(
    "broken",
    [
        {"verdict": moderation_pb2.VERDICT_UNSPECIFIED},
        {"verdict": 7},
        {"target": moderation_pb2.TARGET_UNSPECIFIED},
        {"action": moderation_pb2.ACTION_UNSPECIFIED},
        {"action": 7},
        {"action": moderation_pb2.ACTION_BLOCK},  # beside a verdict of safe
        {"verdict": moderation_pb2.VERDICT_UNSAFE},  # beside an action of allow
        {"unsafe_score": float("nan")},
        {"unsafe_score": -0.1},
        {"unsafe_score": 1.1},
        {"categories": [moderation_pb2.CategoryScore(code="S1", score=float("nan"))]},
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error_never_safe(
    server: FakeServer, client: GuardClient, broken: dict[str, Any]
) -> None:
    def answer(request: Any, context: Any) -> moderation_pb2.ClassifyResponse:
        response = judged(verdict=moderation_pb2.VERDICT_SAFE, action=moderation_pb2.ACTION_ALLOW)
        for name in broken:
            response.ClearField(name)
        response.MergeFrom(moderation_pb2.ClassifyResponse(**broken))
        return response

    server.handlers["Classify"] = answer
    with pytest.raises(NoAnswerError) as error:
        client.classify("hello")
    assert error.value.reason == "NO_ANSWER"


def test_an_empty_response_is_an_error(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Classify"] = lambda request, context: moderation_pb2.ClassifyResponse()
    with pytest.raises(NoAnswerError):
        client.classify("hello")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, RequestRejectedError),
        (grpc.StatusCode.UNIMPLEMENTED, UnsupportedByServerError),
        (grpc.StatusCode.FAILED_PRECONDITION, ModelNotLoadedOnServerError),
        (grpc.StatusCode.NOT_FOUND, ModelNotLoadedOnServerError),
        (grpc.StatusCode.UNAUTHENTICATED, NotPermittedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ServerBusyError),
        (grpc.StatusCode.INTERNAL, ServerFailedError),
        (grpc.StatusCode.DATA_LOSS, ServerFailedError),
    ],
)
def test_each_status_has_its_error(
    server: FakeServer, client: GuardClient, code: grpc.StatusCode, expected: type[GuardClientError]
) -> None:
    server.handlers["Classify"] = failing(code, "said so")
    with pytest.raises(expected) as error:
        client.classify("hello")
    assert error.value.code is code
    assert error.value.reason == code.name  # no ErrorInfo was sent
    assert str(error.value) == f"{code.name}: said so"
    assert isinstance(error.value, GuardError)
    assert len(server.calls) == 1


def test_error_details_are_read(server: FakeServer, client: GuardClient) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="messages[0].content", description="is empty")
    server.handlers["Classify"] = failing(
        grpc.StatusCode.INVALID_ARGUMENT,
        "not as it is",
        error_details_pb2.ErrorInfo(reason="INVALID_INPUT", domain="guardlet", metadata={"request_id": "r-9"}),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
        bad,
    )
    with pytest.raises(RequestRejectedError) as caught:
        client.classify(" ")
    error = caught.value
    assert error.reason == "INVALID_INPUT"
    assert error.field_violations == (FieldViolation("messages[0].content", "is empty"),)
    assert error.retry_after_s == 1.5
    assert error.request_id == "r-9"
    assert str(error) == (
        "INVALID_ARGUMENT (INVALID_INPUT): not as it is; messages[0].content: is empty; retry after 1.5 s"
    )


def test_details_that_are_no_protobuf_leave_the_code(server: FakeServer, client: GuardClient) -> None:
    def handler(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    server.handlers["Classify"] = handler
    with pytest.raises(ServerBusyError) as error:
        client.classify("hello")
    assert error.value.reason == "RESOURCE_EXHAUSTED"


def test_classify_is_retried_while_the_server_is_unavailable(server: FakeServer, client: GuardClient) -> None:
    unavailable = failing(grpc.StatusCode.UNAVAILABLE, "loading")
    server.handlers["Classify"] = lambda request, context: (
        unavailable(request, context) if len(server.calls) < 3 else judged()
    )
    assert client.classify("hello").verdict is Verdict.UNSAFE
    assert len(server.calls) == 3


def test_nothing_else_is_retried(server: FakeServer, client: GuardClient) -> None:
    unavailable = failing(grpc.StatusCode.UNAVAILABLE, "loading")
    server.handlers = dict.fromkeys(("BatchClassify", "Generate", "StreamGenerate", "GetModel"), unavailable)
    for call in (
        lambda: client.batch_classify(["a"]),
        lambda: client.generate("a"),
        lambda: client.stream_generate("a").result(),
        lambda: client.get_model("a"),
    ):
        with pytest.raises(ServerUnavailableError):
            call()
    assert [name for name, _ in server.calls] == ["BatchClassify", "Generate", "StreamGenerate", "GetModel"]


def test_retries_are_throttled(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Classify"] = failing(grpc.StatusCode.UNAVAILABLE, "down")
    for _ in range(8):
        with pytest.raises(ServerUnavailableError):
            client.classify("hello")
    assert len(server.calls) < 8 * 4  # 4 attempts each, were they not throttled


def test_every_call_has_a_deadline(server: FakeServer) -> None:
    release = threading.Event()

    def wait(request: Any, context: grpc.ServicerContext) -> Any:
        remaining.append(context.time_remaining())
        release.wait(5)
        return judged()

    remaining: list[float | None] = []
    server.handlers["Classify"] = wait
    with GuardClient(server.address, timeout_s=0.3) as client, pytest.raises(DeadlineExceededError):
        client.classify("hello")
    release.set()
    assert remaining[0] is not None and remaining[0] <= 0.3


def test_an_unreachable_server_is_unavailable() -> None:
    with GuardClient("127.0.0.1:1", timeout_s=5) as client, pytest.raises(ServerUnavailableError):
        client.list_models()


def test_a_batch_keeps_each_items_outcome(server: FakeServer, client: GuardClient) -> None:
    failed = moderation_pb2.ItemError(code=3, message="too long", reason="INPUT_TOO_LONG", request_id="b.1")
    failed.field_violations.add(field="messages", description="9000 tokens, the limit is 8192")
    busy = moderation_pb2.ItemError(code=8, message="full", retry_delay=Duration(seconds=2))
    server.handlers["BatchClassify"] = lambda request, context: moderation_pb2.BatchClassifyResponse(
        results=[
            moderation_pb2.BatchClassifyResult(response=judged()),
            moderation_pb2.BatchClassifyResult(error=failed),
            moderation_pb2.BatchClassifyResult(error=busy),
            moderation_pb2.BatchClassifyResult(),
            moderation_pb2.BatchClassifyResult(error=moderation_pb2.ItemError()),
        ]
    )
    good, long, full, unset, odd = client.batch_classify(["a", [Message(Role.ASSISTANT, "b")], "c", "d", "e"])
    (request,) = server.requests("BatchClassify")
    assert [item.messages[0].role for item in request.requests][:2] == [
        moderation_pb2.ROLE_USER,
        moderation_pb2.ROLE_ASSISTANT,
    ]
    assert isinstance(good, Classification) and good.verdict is Verdict.UNSAFE
    assert isinstance(long, RequestRejectedError) and long.reason == "INPUT_TOO_LONG" and long.request_id == "b.1"
    assert long.field_violations[0].field == "messages"
    assert isinstance(full, ServerBusyError) and full.retry_after_s == 2 and full.reason == "RESOURCE_EXHAUSTED"
    assert isinstance(unset, NoAnswerError)
    assert isinstance(odd, NoAnswerError)


def test_a_batch_with_results_missing_is_an_error(server: FakeServer, client: GuardClient) -> None:
    server.handlers["BatchClassify"] = lambda request, context: moderation_pb2.BatchClassifyResponse(
        results=[moderation_pb2.BatchClassifyResult(response=judged())]
    )
    with pytest.raises(NoAnswerError, match="2 items were sent and 1 results came back"):
        client.batch_classify(["a", "b"])


def test_generate_sends_what_is_set_and_nothing_else(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(
        request_id="g", model="fake", text="Hello", finish_reason=generation_pb2.FINISH_REASON_STOP_SEQUENCE
    )
    result = client.generate("hi", GenerationOptions(max_tokens=7, temperature=0.0, seed=0, stop=("\n",)))
    (request,) = server.requests("Generate")
    assert (request.max_tokens, request.temperature, request.seed, list(request.stop)) == (7, 0.0, 0, ["\n"])
    assert request.HasField("temperature") and request.HasField("seed")
    assert not request.HasField("top_p") and not request.HasField("top_k")
    assert (result.text, result.finish_reason, result.model) == ("Hello", "stop_sequence", "fake")


def test_a_generation_without_a_finish_reason_is_an_error(server: FakeServer, client: GuardClient) -> None:
    server.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(text="Hel")
    with pytest.raises(NoAnswerError):
        client.generate("hi")


def stream_of(*responses: generation_pb2.StreamGenerateResponse) -> Any:
    return lambda request, context: iter(responses)


FIRST = generation_pb2.StreamGenerateResponse(request_id="g", model="fake")
PIECES = [generation_pb2.StreamGenerateResponse(text=text, token_count=1) for text in ("Hel", "lo ", "🙂")]
LAST = generation_pb2.StreamGenerateResponse(
    finish_reason=generation_pb2.FINISH_REASON_LENGTH, usage=moderation_pb2.Usage(completion_tokens=3)
)


def test_a_stream_gives_pieces_and_then_the_whole(server: FakeServer, client: GuardClient) -> None:
    server.handlers["StreamGenerate"] = stream_of(FIRST, *PIECES, LAST)
    stream = client.stream_generate("hi", GenerationOptions(max_tokens=3))
    assert list(stream) == [Delta("Hel", 1), Delta("lo ", 1), Delta("🙂", 1)]
    result = stream.result()
    assert (result.text, result.finish_reason, result.model) == ("Hello 🙂", "length", "fake")
    assert result.usage.completion_tokens == 3
    assert server.requests("StreamGenerate")[0].max_tokens == 3


@pytest.mark.parametrize("responses", [[], [FIRST], [FIRST, *PIECES]])
def test_a_stream_that_was_cut_off_is_an_error(
    server: FakeServer, client: GuardClient, responses: list[generation_pb2.StreamGenerateResponse]
) -> None:
    server.handlers["StreamGenerate"] = stream_of(*responses)
    with pytest.raises(NoAnswerError):
        client.stream_generate("hi").result()


def test_cancelling_a_stream_reaches_the_server(server: FakeServer, client: GuardClient) -> None:
    gone = threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Iterator[generation_pb2.StreamGenerateResponse]:
        context.add_callback(gone.set)
        while not gone.wait(0.01):
            yield PIECES[0]

    server.handlers["StreamGenerate"] = endless
    stream = client.stream_generate("hi")
    assert next(iter(stream)).text == "Hel"
    stream.cancel()
    assert gone.wait(5)


def test_the_stream_request_has_every_field_of_the_unary_one() -> None:
    """The client turns one into the other by their bytes, so numbers and types have to agree."""
    unary, stream = generation_pb2.GenerateRequest.DESCRIPTOR, generation_pb2.StreamGenerateRequest.DESCRIPTOR
    assert [(f.name, f.number, f.type) for f in unary.fields] == [(f.name, f.number, f.type) for f in stream.fields]


def test_list_models_reads_all_pages(server: FakeServer, client: GuardClient) -> None:
    def page(request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        number = int(request.page_token or 0)
        model = model_pb2.Model(
            name=f"m{number}",
            task=model_pb2.MODEL_TASK_GUARD,
            state=model_pb2.MODEL_STATE_READY,
            categories=[model_pb2.ModelCategory(code="S1", name="Violent Crimes")],
        )
        if number:
            model.verdict_cache.CopyFrom(model_pb2.VerdictCache(hits=5, misses=3, entries=2, bytes=4096))
        return model_pb2.ListModelsResponse(models=[model], next_page_token=str(number + 1) if number < 2 else "")

    server.handlers["ListModels"] = page
    models = client.list_models()
    assert [(model.name, model.task, model.state) for model in models] == [
        (f"m{i}", "guard", "ready") for i in range(3)
    ]
    assert models[0].categories == (("S1", "Violent Crimes"),)
    assert [model.verdict_cache for model in models[:2]] == [None, VerdictCacheInfo(5, 3, 2, 4096)]


def test_get_model_needs_a_known_task(server: FakeServer, client: GuardClient) -> None:
    server.handlers["GetModel"] = lambda request, context: model_pb2.GetModelResponse(
        model=model_pb2.Model(name=request.name)
    )
    with pytest.raises(NoAnswerError, match="task"):
        client.get_model("m")


def test_waiting_for_health(server: FakeServer, client: GuardClient) -> None:
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not client.is_serving()
    with pytest.raises(ServerUnavailableError, match="does not serve"):
        client.wait_until_serving(timeout_s=0.3)
    timer = threading.Timer(0.3, server.health.set, ("", health_pb2.HealthCheckResponse.SERVING))
    timer.start()
    client.wait_until_serving(timeout_s=10)
    timer.join()
    assert client.is_serving()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    files = ["-keyout", str(key), "-out", str(certificate), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    server = FakeServer(handlers={"Classify": lambda request, context: judged()})
    identity = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    trusted = tls_credentials(certificate.read_bytes())
    with running(server, identity):
        with GuardClient(server.address, credentials=trusted, timeout_s=10) as client:
            assert client.classify("hello").verdict is Verdict.UNSAFE
        with GuardClient(server.address, timeout_s=2) as client, pytest.raises(GuardClientError):
            client.classify("hello")
