"""classify, generate and health against a scripted server."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from guard.cli import main
from guard.cli.messages import read_context
from guard.conversation import Message, Role
from guard.errors import InvalidInputError
from guard.v1 import generation_pb2, moderation_pb2
from tests.unit.fake_server import FakeServer, failing, judged, running
from tests.unit.streamed import blocked, progress, releasing_all, unsafe_result


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as fake:
        fake.handlers["Classify"] = lambda request, context: judged()
        yield fake


def safe(request: Any, context: Any) -> moderation_pb2.ClassifyResponse:
    return moderation_pb2.ClassifyResponse(
        verdict=moderation_pb2.VERDICT_SAFE,
        unsafe_score=0.02,
        model="fake-guard",
        target=moderation_pb2.TARGET_PROMPT,
        action=moderation_pb2.ACTION_ALLOW,
    )


def test_unsafe_exits_3(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--address", server.address, "hello"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("UNSAFE   P(unsafe) 0.900")
    assert lines[1:] == ["  S2   0.800  Non-Violent Crimes"]


def test_notes_say_where_it_was_found(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Classify"] = lambda request, context: judged(
        view=moderation_pb2.TEXT_VIEW_DECODED,
        window=moderation_pb2.TextWindow(start=100, end=900, index=2, count=4),
        context_messages_left_out=3,
        signals=[moderation_pb2.INPUT_SIGNAL_FORGED_DELIMITER],
    )
    main(["classify", "--address", server.address, "hello"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "  note: found in the decoded reading of the text",
        "  note: characters 100 to 900, part 3 of 4, were judged worst",
        "  note: the 3 earliest messages did not fit the model's context",
        "  note: the text imitates the guard prompt's own delimiters",
    ]


def test_safe_exits_0(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Classify"] = safe
    assert main(["classify", "--address", server.address, "hello"]) == 0
    assert capsys.readouterr().out.startswith("SAFE   P(unsafe) 0.020")


def test_an_answer_without_a_verdict_exits_1(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Classify"] = lambda request, context: moderation_pb2.ClassifyResponse()
    assert main(["classify", "--address", server.address, "hello"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "not an answer" in err


def test_classify_json_is_stable(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--address", server.address, "--json", "hello"]) == 3
    assert json.loads(capsys.readouterr().out) == {
        "request_id": "r-1",
        "model": "fake-guard",
        "target": "prompt",
        "verdict": "unsafe",
        "unsafe_score": 0.9,
        "categories": [
            {"code": "S1", "name": "Violent Crimes", "score": 0.1, "flagged": False},
            {"code": "S2", "name": "Non-Violent Crimes", "score": 0.8, "flagged": True},
        ],
        "action": "block",
        "decided_by": "model",
        "matched_entry": None,
        "policy": {"name": "default", "digest": "d1"},
        "mode": "one_pass",
        "forged_delimiters": False,
        "view": "raw",
        "window": {"start": 0, "end": 5, "index": 0, "count": 1},
        "passes": 1,
        "context_messages_left_out": 0,
        "usage": {
            "prompt_tokens": 120,
            "cached_tokens": 80,
            "completion_tokens": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        },
        "timings": {"queue_s": 0.0, "model_s": 0.0, "first_token_s": None, "total_s": 0.25},
        "screening": "not_asked",
    }


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"decided_by": moderation_pb2.DECIDED_BY_DENY_LIST, "matched_entry": "codename"},
            "entry codename of the deny list of default",
        ),
        ({"decided_by": moderation_pb2.DECIDED_BY_CACHE}, "the same was judged a short time ago"),
        (
            {"action": moderation_pb2.ACTION_REPORT, "policy_name": "trial"},
            "the policy trial is in shadow mode: do not block",
        ),
    ],
)
def test_notes_say_how_it_was_decided(
    server: FakeServer, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], note: str
) -> None:
    server.handlers["Classify"] = lambda request, context: judged(**changes)
    assert main(["classify", "--address", server.address, "hello"]) == 3
    assert capsys.readouterr().out.splitlines()[2:] == [f"  note: {note}"]


def test_a_policy_is_named_and_only_what_is_given_goes_before_it(server: FakeServer) -> None:
    main(["classify", "--address", server.address, "--policy", "strict", "--exclude", "S6", "hello"])
    (request,) = server.requests("Classify")
    assert request.policy_name == "strict"
    assert list(request.policy.excluded_categories) == ["S6"]
    assert not request.policy.HasField("threshold")


def test_a_response_is_judged_after_its_context(server: FakeServer, tmp_path: Path) -> None:
    context = tmp_path / "context.jsonl"
    context.write_text('{"role": "user", "content": "Question?"}\n\n', encoding="utf-8")
    options = ["--role", "assistant", "--context", str(context), "--threshold", "0.8", "--exclude", "S9", "--exact"]
    main(["classify", "--address", server.address, *options, "Answer."])
    (request,) = server.requests("Classify")
    assert [(m.role, m.content) for m in request.messages] == [
        (moderation_pb2.ROLE_USER, "Question?"),
        (moderation_pb2.ROLE_ASSISTANT, "Answer."),
    ]
    assert request.policy.threshold == 0.8
    assert list(request.policy.excluded_categories) == ["S9"]
    assert request.mode == moderation_pb2.CLASSIFICATION_MODE_EXACT


def test_dash_reads_standard_input(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    main(["classify", "--address", server.address, "-"])
    assert server.requests("Classify")[0].messages[0].content == "from a pipe"


def test_a_refused_request_names_the_field(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="messages[0].content", description="is empty")
    info = error_details_pb2.ErrorInfo(reason="INVALID_INPUT")
    server.handlers["Classify"] = failing(grpc.StatusCode.INVALID_ARGUMENT, "bad request", info, bad)
    assert main(["classify", "--address", server.address, " "]) == 1
    line = "guard classify: INVALID_ARGUMENT (INVALID_INPUT): bad request; messages[0].content: is empty\n"
    assert capsys.readouterr() == ("", line)
    assert main(["classify", "--address", server.address, "--json", " "]) == 1
    assert json.loads(capsys.readouterr().err)["error"] == {
        "type": "RequestRejectedError",
        "reason": "INVALID_INPUT",
        "message": "INVALID_ARGUMENT (INVALID_INPUT): bad request; messages[0].content: is empty",
        "code": "INVALID_ARGUMENT",
        "field_violations": [{"field": "messages[0].content", "description": "is empty"}],
    }


def test_a_wrong_threshold_is_refused_here(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--address", server.address, "--threshold", "nan", "hello"]) == 1
    assert "policy.threshold" in capsys.readouterr().err
    assert server.calls == []


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_wrong_timeout_is_a_usage_error(value: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["classify", "--timeout", value, "hello"])
    assert stop.value.code == 2


def written(request: Any, context: Any) -> Iterator[generation_pb2.StreamGenerateResponse]:
    yield generation_pb2.StreamGenerateResponse(request_id="g", model="fake")
    yield generation_pb2.StreamGenerateResponse(text="Hello ", token_count=1)
    yield generation_pb2.StreamGenerateResponse(text="there", token_count=1)
    yield generation_pb2.StreamGenerateResponse(
        finish_reason=generation_pb2.FINISH_REASON_STOP, usage=moderation_pb2.Usage(completion_tokens=2)
    )


def test_generate_streams_text(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["StreamGenerate"] = written
    options = ["--system", "Be brief.", "--max-tokens", "9", "--temperature", "0", "--top-k", "3", "--stop", "."]
    assert main(["generate", "--address", server.address, *options, "hi"]) == 0
    assert capsys.readouterr().out == "Hello there\n"
    (request,) = server.requests("StreamGenerate")
    assert [message.role for message in request.messages] == [moderation_pb2.ROLE_SYSTEM, moderation_pb2.ROLE_USER]
    assert (request.max_tokens, request.temperature, request.top_k, list(request.stop)) == (9, 0, 3, ["."])
    assert not request.HasField("seed")


def test_generate_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(
        text="Hello there", model="fake", finish_reason=generation_pb2.FINISH_REASON_STOP
    )
    assert main(["generate", "--address", server.address, "--json", "hi"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["text"], value["finish_reason"], value["model"]) == ("Hello there", "stop", "fake")


def test_a_cut_off_generation_exits_1(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["StreamGenerate"] = lambda request, context: iter(
        [generation_pb2.StreamGenerateResponse(text="Hel", token_count=1)]
    )
    assert main(["generate", "--address", server.address, "hi"]) == 1
    assert "finish_reason" in capsys.readouterr().err


def test_the_address_comes_from_the_environment_too(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_ADDRESS", server.address)
    assert main(["health"]) == 0
    assert main(["health", "--address", "127.0.0.1:1"]) == 1


def test_health(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--address", server.address]) == 0
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main(["health", "--address", server.address, "--json"]) == 1
    assert capsys.readouterr().out == 'SERVING\n{"status": "NOT_SERVING"}\n'
    assert main(["health", "--address", "127.0.0.1:1"]) == 1


roles = st.sampled_from(["user", "assistant", "system", "tool"])
contents = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
conversations = st.lists(st.fixed_dictionaries({"role": roles, "content": contents}), max_size=5)


@given(conversations, st.booleans(), st.booleans())
def test_context_files_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, messages: list[dict[str, str]], lines: bool, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("context") / "context"
    dumped = [json.dumps(message, ensure_ascii=ascii_only) for message in messages]
    path.write_text("\n".join(dumped) if lines else f"[{', '.join(dumped)}]", encoding="utf-8", newline="")
    assert read_context(path) == [Message(Role(m["role"]), m["content"]) for m in messages]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"[", "context"),
        (b"\xff", "context"),
        (b"canary", "context"),
        (b'{"role": "user", "content": "a"}\n[]', "context[1]"),
        (b'[{"role": "user"}]', "context[0]"),
        (b'[{"role": "user", "content": "canary", "name": "x"}]', "context[0]"),
        (b'[{"role": "canary", "content": "a"}]', "context[0].role"),
        (b'[{"role": "user", "content": 1}]', "context[0].content"),
        (b'[{"role": ["user"], "content": "a"}]', "context[0].role"),
    ],
)
def test_a_wrong_context_file_is_refused_by_field_and_never_quoted(tmp_path: Path, content: bytes, field: str) -> None:
    path = tmp_path / "context"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        read_context(path)
    assert error.value.field == field
    assert "canary" not in str(error.value)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    """What is written here arrives on standard input."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr("sys.stdin", stdin)
        yield pipe


def test_a_stream_passes_on_what_was_judged(
    server: FakeServer, piped: BinaryIO, capsys: pytest.CaptureFixture[str]
) -> None:
    server.handlers["StreamClassify"] = releasing_all()
    piped.write("Once upon été 🙂\n".encode())
    piped.close()
    options = ["--role", "assistant", "--every", "16", "--within", "0.5", "--threshold", "0.7"]
    assert main(["classify", "--address", server.address, "--stream", *options]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("Once upon été 🙂\n", "")
    start = server.requests("StreamClassify")[0].start
    assert start.target == moderation_pb2.TARGET_RESPONSE
    assert (start.check_every_tokens, start.check_at_latest_after.ToMilliseconds()) == (16, 500)
    assert start.policy.threshold == 0.7


def test_a_stream_stops_before_what_is_unsafe(
    server: FakeServer, piped: BinaryIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """And while whoever writes it goes on: the pipe stays open."""

    def after_two_pieces(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        next(requests)
        size = len(next(requests).text.encode())
        yield progress(size)
        piped.write(b"a bomb ")
        yield from [blocked(size, size + len(next(requests).text)), unsafe_result()]

    server.handlers["StreamClassify"] = after_two_pieces
    piped.write(b"Once upon a time ")
    assert main(["classify", "--address", server.address, "--stream", "--sentences"]) == 3
    out, err = capsys.readouterr()
    assert out == "Once upon a time "
    assert "S2 Non-Violent Crimes" in err
    assert "bomb" not in out + err
    assert server.requests("StreamClassify")[0].start.at_sentence_ends


def test_a_stream_as_json(server: FakeServer, piped: BinaryIO, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["StreamClassify"] = releasing_all()
    piped.write(b"a bomb")
    piped.close()
    assert main(["classify", "--address", server.address, "--stream", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "unsafe"


def test_a_stream_that_fails_exits_1(server: FakeServer, piped: BinaryIO, capsys: pytest.CaptureFixture[str]) -> None:
    def cut_off(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        list(requests)
        yield progress(4)

    server.handlers["StreamClassify"] = cut_off
    piped.write(b"Once upon")
    piped.close()
    assert main(["classify", "--address", server.address, "--stream"]) == 1
    out, err = capsys.readouterr()
    assert out == "Once"
    assert "without a result" in err


def test_a_stream_that_is_not_utf8(server: FakeServer, piped: BinaryIO, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["StreamClassify"] = releasing_all()
    piped.write(b"\xff\xfe")
    piped.close()
    assert main(["classify", "--address", server.address, "--stream"]) == 1
    assert "expected UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--stream", "text"], [], ["--stream", "--every", "8", "--sentences"]], ids=["text", "none", "both"]
)
def test_wrong_options_of_a_stream(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["classify", *arguments])
    assert ended.value.code == 2


def test_options_of_a_stream_need_one(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--every", "8"], ["--sentences"], ["--within", "1"]):
        assert main(["classify", "--address", server.address, *option, "text"]) == 1
        assert "only with --stream" in capsys.readouterr().err
    assert not server.calls


def test_a_stream_is_not_exact(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--address", server.address, "--stream", "--exact"]) == 1
    assert "--exact" in capsys.readouterr().err
