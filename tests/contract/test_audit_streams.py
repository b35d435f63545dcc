"""Streams let go of text before their verdict: the audit log knows of each, however it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import ModerationOptions, StreamGenerateRequest
from guard.v1.moderation_pb2 import StreamClassifyRequest
from server.audit import AuditFile

from .fakes import BROKEN_MARK, FakeModels, crash
from .running import Running, message, running, until
from .streams import start
from .test_audit import BOTH, KEY, hashed, lines

WORDS = "one two three four five six seven eight nine ten eleven twelve "
DIES = "#dies#"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def server(models: FakeModels, file: Path, tmp_path: Path) -> AsyncIterator[Running]:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    models.faults = {DIES: crash}
    async with running(models, audit_file=file, audit_key_file=key, metrics_address="127.0.0.1:0") as started:
        yield started


async def begun(server: Running, timeout: float | None = None) -> Any:
    """A stream that was told of its first check."""
    call = server.moderation.StreamClassify(timeout=timeout)
    await call.write(start(request_id="s-1"))
    await call.write(StreamClassifyRequest(text=WORDS))
    assert (await call.read()).progress.released_bytes > 0
    return call


async def last(file: Path) -> dict[str, Any]:
    """The line after the first about the same text, once it is there; a generation's prompt has one of its own."""

    def of_the_text() -> list[dict[str, Any]]:
        targets = [line["target"] for line in lines(file) if line["outcome"] == "begun"]
        return [line for line in lines(file) if line["target"] in targets]

    await until(lambda: len(of_the_text()) == 2)
    first, second = of_the_text()
    assert (first["outcome"], first["request_id"]) == ("begun", second["request_id"])
    assert "verdict" not in first and "text_hmac" not in first
    assert {name: first[name] for name in first if name not in ("time", "outcome")}.items() <= second.items()
    return second


async def test_the_client_leaves(server: Running, file: Path) -> None:
    (await begun(server)).cancel()
    line = await last(file)
    assert (line["outcome"], line["verdict"], line["request_id"]) == ("CANCELLED", "safe", "s-1")
    assert line["text_hmac"] in {hashed(WORDS[:end]) for end in range(1, len(WORDS) + 1)}


async def test_the_deadline_passes(server: Running, file: Path) -> None:
    call = await begun(server, timeout=0.6)
    with pytest.raises(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    assert (await last(file))["outcome"] in ("DEADLINE", "CANCELLED")  # whoever notices first: this server, or gRPC


@pytest.mark.parametrize(("mark", "reason"), [(BROKEN_MARK, "MODEL_OUTPUT_UNREADABLE"), (DIES, "UNAVAILABLE")])
async def test_the_model_fails(server: Running, file: Path, mark: str, reason: str) -> None:
    call = await begun(server)
    with pytest.raises(grpc.aio.AioRpcError):
        await call.write(StreamClassifyRequest(text=mark + " " + WORDS))
        while await call.read() is not grpc.aio.EOF:
            pass
    line = await last(file)
    assert (line["outcome"], line["verdict"]) == (reason, "safe")


async def test_a_stream_of_which_nothing_left_has_no_line(server: Running, file: Path) -> None:
    call = server.moderation.StreamClassify()
    await call.write(start())
    await call.initial_metadata()
    call.cancel()
    gate = server.app.gates["guard.v1.ModerationService"]
    await until(lambda: gate.requests == 0)
    assert lines(file) == []


async def test_the_reader_of_a_generation_leaves(server: Running, models: FakeModels, file: Path) -> None:
    models.says = [WORDS * 20]
    models.runners["instruct"].step_seconds = 0.01
    checks = ModerationOptions(check_input=True, check_output=True, check_every_tokens=8)
    call = server.generation.StreamGenerate(
        StreamGenerateRequest(messages=[message("hi")], max_tokens=2000, moderation=checks, request_id="g")
    )
    text = ""
    while not text:
        text = (await call.read()).text
    call.cancel()
    line = await last(file)
    assert (line["outcome"], line["verdict"], line["request_id"]) == ("CANCELLED", None, "g")
    assert len(text) < len(models.says[0])
    assert line["text_hmac"] == hashed(text)


async def test_the_reader_of_a_generation_leaves_when_all_of_it_was_judged(
    server: Running, models: FakeModels, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = AuditFile.append

    def slow(self: AuditFile, line: bytes) -> None:
        time.sleep(0.1)
        write(self, line)

    monkeypatch.setattr(AuditFile, "append", slow)
    models.says = ["yes"]
    call = server.generation.StreamGenerate(
        StreamGenerateRequest(messages=[message("hi")], max_tokens=9, moderation=BOTH, request_id="g")
    )
    while not (await call.read()).text:
        pass
    await until(lambda: len(lines(file)) == 2)  # begun, and the prompt's verdict: the text's is not there yet
    call.cancel()
    assert (await last(file))["outcome"] == "judged"
    gate = server.app.gates["guard.v1.GenerationService"]
    await until(lambda: gate.requests == 0)
    await asyncio.sleep(0.3)
    assert len(lines(file)) == 3  # nothing that says otherwise
