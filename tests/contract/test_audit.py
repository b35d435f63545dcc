"""The audit log of a running server: a line for every verdict, none of them with text, and what a full disk does."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from guard.v1.generation_pb2 import GenerateRequest, ModerationOptions, StreamGenerateRequest
from guard.v1.moderation_pb2 import (
    TARGET_PROMPT,
    VERDICT_UNSAFE,
    BatchClassifyRequest,
    StreamClassifyRequest,
    StreamClassifyStart,
)
from server.auth import keys
from server.errors import SettingsError
from server.telemetry.tracing import Tracing

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import Running, message, question, refused, running
from .scraping import scrape

KEY = b"0123456789abcdef0123456789abcdef"
BOTH = ModerationOptions(check_input=True, check_output=True)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def audited(models: FakeModels, file: Path, key_file: Path) -> AsyncIterator[Running]:
    async with running(models, audit_file=file, audit_key_file=key_file, cache_entries=100) as server:
        yield server


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def hashed(text: str) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()


def stream(*texts: str) -> list[StreamClassifyRequest]:
    start = StreamClassifyRequest(start=StreamClassifyStart(target=TARGET_PROMPT))
    return [start, *(StreamClassifyRequest(text=text) for text in texts)]


async def test_a_verdict_is_recorded_with_all_that_made_it(audited: Running, file: Path) -> None:
    entry = audited.app.registry.guard()[0]
    answer = await audited.moderation.Classify(question("Bäcker " + UNSAFE_MARK, request_id="r-1"))
    (line,) = lines(file)
    assert line.pop("time").endswith("+00:00")
    assert line.pop("categories") == {found.code: pytest.approx(found.score, abs=1e-5) for found in answer.categories}
    assert line == {
        "request_id": "r-1",
        "caller": None,
        "method": "/guard.v1.ModerationService/Classify",
        "model": "tiny-guard",
        "model_digest": entry.model.bundle.digest,
        "policy": "default",
        "policy_digest": answer.policy_digest,
        "target": "prompt",
        "outcome": "judged",
        "verdict": "unsafe",
        "unsafe_score": pytest.approx(answer.unsafe_score, abs=1e-5),
        "flagged": ["S2"],
        "action": "block",
        "decided_by": "model",
        "matched_entry": None,
        "text_hmac": hashed("Bäcker " + UNSAFE_MARK),
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "Bäcker" not in file.read_text()


async def test_every_way_to_a_verdict_is_recorded_and_no_other_call_is(audited: Running, file: Path) -> None:
    await audited.moderation.Classify(question("bread"))
    await audited.moderation.Classify(question("bread"))
    items = [question("rolls", request_id="b-0"), question(" "), question("buns")]
    await audited.moderation.BatchClassify(BatchClassifyRequest(request_id="b", requests=items))
    async for _ in audited.moderation.StreamClassify(iter(stream("a whole ", "loaf"))):
        pass
    await audited.generation.Generate(GenerateRequest(messages=[message("hi")], max_tokens=5, moderation=BOTH))
    await audited.generation.Generate(GenerateRequest(messages=[message("unmoderated")], max_tokens=5))
    await refused(audited.moderation.Classify(question(BROKEN_MARK)))
    assert [line["method"].rpartition("/")[2] for line in lines(file) if line["outcome"] == "begun"] == [
        "StreamClassify"
    ]
    judged = [line for line in lines(file) if line["outcome"] == "judged"]
    found = [(line["method"].rpartition("/")[2], line["target"], line["decided_by"]) for line in judged]
    assert sorted(found) == [
        ("BatchClassify", "prompt", "model"),
        ("BatchClassify", "prompt", "model"),
        ("Classify", "prompt", "cache"),
        ("Classify", "prompt", "model"),
        ("Generate", "prompt", "model"),
        ("Generate", "response", "model"),
        ("StreamClassify", "prompt", "model"),
    ]
    hashes = {line["text_hmac"] for line in judged}
    assert {hashed(text) for text in ("bread", "rolls", "buns", "a whole loaf", "hi", "abcde")} - hashes <= {
        hashed("abcde")  # where the letters begin depends on the prompt
    }
    assert {line["request_id"] for line in lines(file) if "Batch" in line["method"]} == {"b-0", "b.2"}


async def test_callers_are_named_and_their_keys_are_nowhere(
    models: FakeModels, file: Path, key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.new_key()
    callers = tmp_path / "callers.yaml"
    callers.write_text(f'callers:\n  news:\n    keys: ["{keys.key_hash(key)}"]\n')
    settings: dict[str, Any] = {"audit_file": file, "audit_key_file": key_file, "callers": callers}
    spans = InMemorySpanExporter()
    tracing = Tracing(spans, 1.0, batched=False)
    with caplog.at_level(logging.INFO):
        async with running(models, metrics_address="127.0.0.1:0", tracing=tracing, **settings) as server:
            await server.moderation.Classify(question("bread"), metadata=[("authorization", f"Bearer {key}")])
            answer = await refused(
                server.moderation.Classify(question("bread"), metadata=[("authorization", f"Bearer {key}x")])
            )
            found = await scrape(server)
    assert answer.code is grpc.StatusCode.UNAUTHENTICATED
    assert found.value("guard_caller_calls_total", caller="news", grpc_status="OK") == 1
    assert found.value("guard_caller_calls_total") == 1
    assert [line["caller"] for line in lines(file)] == ["news"]
    calls = [getattr(record, "fields", {}) for record in caplog.records if record.msg == "call"]
    assert [call["caller"] for call in calls] == ["news", None]
    finished = spans.get_finished_spans()
    assert [(span.attributes or {}).get("guard.caller") for span in finished if span.kind is SpanKind.SERVER] == [
        "news",
        None,
    ]
    everything = [str(calls), found.text, file.read_text(), answer.everything, *(span.to_json() for span in finished)]
    assert not [text for text in everything if key in text]


async def test_a_restart_goes_on_in_the_same_file(models: FakeModels, file: Path, key_file: Path) -> None:
    for _ in range(2):
        async with running(models, audit_file=file, audit_key_file=key_file) as server:
            await server.moderation.Classify(question("bread"))
    first, second = lines(file)
    assert first["text_hmac"] == second["text_hmac"]


async def test_without_room_for_the_line_there_is_no_verdict(models: FakeModels, key_file: Path) -> None:
    settings: dict[str, Any] = {"audit_file": Path("/dev/full"), "audit_key_file": key_file}
    async with running(models, metrics_address="127.0.0.1:0", **settings) as server:
        for text in ("bread", UNSAFE_MARK):
            answer = await refused(server.moderation.Classify(question(text)))
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert answer.message == "the verdict cannot be recorded in the audit log"
        batch = await server.moderation.BatchClassify(BatchClassifyRequest(requests=[question("x")]))
        assert batch.results[0].error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in server.moderation.StreamClassify(iter(stream("bread"))):
                raise AssertionError("nothing is released without a line")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        request = StreamGenerateRequest(messages=[message("hi")], max_tokens=5, moderation=BOTH)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for part in server.generation.StreamGenerate(request):
                assert not (part.text or part.HasField("usage"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await server.serving()  # and what needs no verdict works
        await server.generation.Generate(GenerateRequest(messages=[message("hi")], max_tokens=5))
        found = await scrape(server)
        assert found.value("guard_audit_failures_total") >= 5
        assert found.value("guard_verdicts_total") == 0


async def test_where_it_is_not_required_verdicts_go_on_as_they_are(models: FakeModels, key_file: Path) -> None:
    settings: dict[str, Any] = {"audit_file": Path("/dev/full"), "audit_key_file": key_file, "audit_required": False}
    async with running(models, metrics_address="127.0.0.1:0", **settings) as server:
        answer = await server.moderation.Classify(question(UNSAFE_MARK))
        assert answer.verdict == VERDICT_UNSAFE
        assert (await scrape(server)).value("guard_audit_failures_total") == 1


@pytest.mark.parametrize(
    ("key", "problem"),
    [(None, "needs audit_key_file"), (b"short", "5 bytes, expected at least 32"), (b"", "0 bytes")],
)
async def test_a_key_is_needed(models: FakeModels, file: Path, key_file: Path, key: bytes | None, problem: str) -> None:
    if key is not None:
        key_file.write_bytes(key)
    with pytest.raises(SettingsError, match=problem):
        async with running(models, audit_file=file, audit_key_file=None if key is None else key_file):
            pass
