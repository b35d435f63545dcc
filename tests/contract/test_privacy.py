"""Zero data retention: text of a request is in no log line and in no error detail, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import (
    ChoiceFormat,
    GenerateRequest,
    JsonSchemaFormat,
    Label,
    ModerationOptions,
    RegexFormat,
    ResponseFormat,
    StreamGenerateRequest,
    TagRequest,
    Tool,
)
from guard.v1.moderation_pb2 import (
    ROLE_TOOL,
    BatchClassifyRequest,
    ClassifyRequest,
    CustomCategory,
    Message,
    Policy,
    ToolCall,
)
from server import log

from .facade import JSON, facade, get, post
from .fakes import BROKEN_MARK, FakeModels
from .running import ASSISTANT, Running, message, question, refused, running

CANARY = "canary-3f9c"


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Everything that the process would log, at every level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log.JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def lines(logs: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logs.getvalue().splitlines()]


def refused_generations(text: str) -> list[GenerateRequest]:
    """Requests that are wrong in every place where a caller writes."""
    quoted = json.dumps(CANARY)
    schemas = [
        quoted,
        f"{{{quoted}: ",
        f'{{"type": {quoted}}}',
        f'{{"$ref": "#/$defs/{CANARY}"}}',
        f'{{"properties": {{{quoted}: {{"type": 7}}}}}}',
        f'{{"properties": {{{quoted}: {{"pattern": "{CANARY}("}}}}}}',
    ]
    call = ToolCall(id=CANARY, name="f", arguments_json=CANARY)
    fields: list[dict[str, Any]] = [
        *({"tools": [Tool(name="f", parameters_json_schema=schema)]} for schema in schemas),
        *({"response_format": ResponseFormat(json_schema=JsonSchemaFormat(schema=schema))} for schema in schemas),
        *(
            {"response_format": ResponseFormat(regex=RegexFormat(pattern=CANARY + end))}
            for end in ("(", r"\p{x}", "\\")
        ),
        {"response_format": ResponseFormat(choice=ChoiceFormat(choices=[CANARY, CANARY]))},
        {"tools": [Tool(name=CANARY + " !")]},
        {"tools": [Tool(name="f")], "tool_choice_name": CANARY},
        {"date": CANARY},
        {"prompt": CANARY},
        {"messages": [message(text), Message(role=ASSISTANT, tool_calls=[call]), message(text)]},
        {"messages": [message(text), Message(role=ROLE_TOOL, content=text, tool_call_id=CANARY)]},
        {"moderation": ModerationOptions(check_input=True, policy_name=CANARY)},
        {"moderation": ModerationOptions(check_input=True, model=CANARY)},
        {"moderation": ModerationOptions(check_output=True, policy=Policy(excluded_categories=[CANARY]))},
    ]
    return [GenerateRequest(**({"messages": [message(text)]} | each)) for each in fields]


async def test_canary_is_in_no_error_and_no_log(
    server: Running, logs: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    policies = [
        Policy(excluded_categories=[CANARY]),
        Policy(category_thresholds={CANARY: 0.5}),
        Policy(custom_categories=[CustomCategory(code=CANARY, name="x")]),
        Policy(custom_categories=[CustomCategory(code="S1", name=CANARY + "\0")]),
        Policy(custom_categories=[CustomCategory(code="S1", name="n", description=CANARY + "<")]),
        Policy(custom_categories=[CustomCategory(code="S90", name=CANARY)]),
    ]
    text = f"{CANARY} hello"
    calls = [
        *(server.moderation.Classify(question(text, policy=policy)) for policy in policies),
        server.moderation.Classify(question(text, request_id=f"{CANARY} !")),
        server.moderation.Classify(question(text, model=CANARY)),
        server.moderation.Classify(question(text + "x" * 140_000)),
        server.moderation.Classify(question(text + BROKEN_MARK)),
        server.moderation.Classify(ClassifyRequest(messages=[message(text), message(text)])),
        server.generation.Generate(GenerateRequest(messages=[message(text, ASSISTANT)])),
        server.generation.Generate(GenerateRequest(messages=[message(text)], stop=[CANARY * 100])),
        *(server.generation.Generate(request) for request in refused_generations(text)),
        server.generation.Tag(TagRequest(text=text, labels=[Label(name=CANARY), Label(name=CANARY)])),
        server.generation.Tag(TagRequest(text=text, labels=[Label(name=CANARY), Label(name=f"{CANARY}\n")])),
        server.generation.Tag(TagRequest(text=text, messages=[message(text)])),
        server.channel.unary_unary("/guard.v1.ModerationService/Classify")(b"\x0a\x7f" + CANARY.encode()),
    ]
    for call in calls:
        assert CANARY not in (await refused(call)).everything
    assert (await server.moderation.Classify(question(text))).verdict
    batch = await server.moderation.BatchClassify(BatchClassifyRequest(requests=[question(text, policy=policies[0])]))
    assert CANARY not in str(batch)
    stream = server.generation.StreamGenerate(StreamGenerateRequest(messages=[message(text)], max_tokens=2000))
    await stream.read()
    stream.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stream.read()
    await asyncio.sleep(0.1)
    output = capfd.readouterr()
    assert CANARY not in logs.getvalue() + output.out + output.err
    assert len([line for line in lines(logs) if line["event"] == "call"]) == len(calls) + 3


async def test_unknown_errors_keep_their_text(
    server: Running, logs: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, classifier = server.app.registry.guard()

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"cannot read {CANARY}")

    monkeypatch.setattr(classifier, "submit", explode)
    answer = await refused(server.moderation.Classify(question(CANARY, request_id="r-1")))
    assert answer.code is grpc.StatusCode.INTERNAL
    assert answer.message == "internal error (request r-1)"
    assert answer.info.reason == "INTERNAL"
    assert CANARY not in answer.everything
    assert CANARY not in logs.getvalue()
    (found,) = [line for line in lines(logs) if line["event"] == "internal_error"]
    assert found["exception"] == "RuntimeError"
    assert found["request_id"] == "r-1"
    assert "test_privacy.py" in found["at"][-1]

    batch = await refused(server.moderation.BatchClassify(BatchClassifyRequest(requests=[question(CANARY)])))
    assert batch.code is grpc.StatusCode.INTERNAL
    assert CANARY not in batch.everything + logs.getvalue()
    found = [line for line in lines(logs) if line["event"] == "internal_error"][-1]
    assert found["exception"] == "RuntimeError"
    assert "test_privacy.py" in found["at"][-1]


async def test_access_log_line(server: Running, logs: io.StringIO) -> None:
    await server.moderation.Classify(question("bread", request_id="r-2"))
    await refused(server.moderation.Classify(question(" ", request_id="r-3")))
    await server.serving()
    good, bad = [line for line in lines(logs) if line["event"] == "call"]  # health is not logged
    assert (good["method"], good["code"], good["request_id"]) == ("/guard.v1.ModerationService/Classify", "OK", "r-2")
    assert (bad["code"], bad["request_id"]) == ("INVALID_ARGUMENT", "r-3")
    assert good["ms"] >= 0
    assert good["bytes"] > 5


async def test_access_log_can_be_turned_off(models: FakeModels, logs: io.StringIO) -> None:
    async with running(models, access_log=False) as server:
        await server.moderation.Classify(question("bread"))
    assert "call" not in [line["event"] for line in lines(logs)]


async def test_cancelled_calls_are_logged_as_such_and_not_as_errors(models: FakeModels, logs: io.StringIO) -> None:
    models.step_seconds = 0.01
    async with running(models) as server:
        for _ in range(20):
            call = server.generation.StreamGenerate(StreamGenerateRequest(messages=[message("x")], max_tokens=1000))
            await call.read()
            call.cancel()
        await asyncio.sleep(0.2)
    found = [line for line in lines(logs) if line["event"] == "call"]
    assert [line["code"] for line in found] == ["CANCELLED"] * 20
    assert not [line for line in lines(logs) if line["level"] == "error"]


async def test_http_logs_no_text_either(models: FakeModels, logs: io.StringIO) -> None:
    chat = {"model": "default", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 4}
    bodies = [
        ("/v1/moderations", {"input": CANARY}),
        ("/v1/moderations", {"input": [CANARY, f"{CANARY} {BROKEN_MARK}"]}),
        ("/v1/moderations", {"input": CANARY, "guardlet": {"mode": CANARY}}),
        ("/v1/moderations", {"input": [{"type": CANARY}]}),
        ("/v1/moderations", {"input": CANARY, f"{CANARY} key": 1}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True, "guardlet": {"moderation": True}}),
        ("/v1/chat/completions", chat | {"tool_choice": CANARY}),
        ("/v1/chat/completions", chat | {"response_format": {"type": CANARY}}),
        ("/v1/chat/completions", chat | {"logit_bias": {CANARY: 1}}),
        ("/v1/chat/completions", chat | {"guardlet": {"moderation": {"policy_name": f"{CANARY} name"}}}),
        ("/v1/chat/completions", chat | {"messages": [{"role": CANARY, "content": CANARY}]}),
    ]
    async with facade(models) as http:
        answers = [await http.raw(post(path, json.dumps(body).encode(), JSON)) for path, body in bodies]
        answers.append(await http.raw(post("/v1/moderations", CANARY.encode(), JSON)))
        answers.append(await http.raw(get(f"/{CANARY}")))
        with contextlib.suppress(IndexError):  # no answer at all is fine
            await http.raw(f"{CANARY} no HTTP\r\n\r\n".encode())
    statuses = [status for status, _, _ in answers]
    assert statuses == [200, 500, 400, 400, 400, 200, 200, 400, 400, 400, 400, 400, 400, 404]
    for status, _, body in answers:
        assert status == 200 or CANARY.encode() not in body, "an error repeats nothing"
    assert len([line for line in lines(logs) if line["event"] == "call"]) == 13
    assert CANARY not in logs.getvalue()
