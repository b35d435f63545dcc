"""Failure test 24: what a caller wrote is in no log, metric, span, error detail, audit file or temp file.

A real server process in a directory of its own gets the canary over every way to a model, and is struck by every fault
while it works on it. Then everything that it left is searched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.v1.generation_pb2 import GenerateRequest, Label, ModerationOptions, StreamGenerateRequest, TagRequest
from guard.v1.moderation_pb2 import BatchClassifyRequest

from .fakes import BROKEN_MARK, UNSAFE_MARK
from .process import Client, Process, ready, started
from .running import message, question
from .scraping import get
from .serve_canary import CANARY
from .streams import steps

#: The canary as it could be written: as it is, escaped in JSON, and percent-encoded or in Base64 its beginning.
FORMS = [CANARY.encode(), json.dumps(CANARY).strip('"').encode(), b"canary-3f9c", b"Y2FuYXJ5LTNmOWMt", b"canary%2D3f9c"]
BOTH = ModerationOptions(check_input=True, check_output=True)


def batch(text: str) -> BatchClassifyRequest:
    return BatchClassifyRequest(requests=[question(f"{text} {number}") for number in range(4)])


def prompt(text: str) -> dict[str, Any]:
    return {"messages": [message(text)], "max_tokens": 40, "moderation": BOTH}


async def one(call: Awaitable[Any]) -> str:
    return str(await call)


async def many(call: Any) -> str:
    return "".join([str(part) async for part in call])


#: A call of each method that a model works for, with ``text`` wherever a caller writes. Answers what it got.
Path_ = Callable[[Client, str, float], Awaitable[str]]
PATHS: dict[str, Path_] = {
    "Classify": lambda client, text, limit: one(client.moderation.Classify(question(text), timeout=limit)),
    "BatchClassify": lambda client, text, limit: one(client.moderation.BatchClassify(batch(text), timeout=limit)),
    "StreamClassify": lambda client, text, limit: many(
        client.moderation.StreamClassify(iter(steps([text, " and ", text])), timeout=limit)
    ),
    "Generate": lambda client, text, limit: one(
        client.generation.Generate(GenerateRequest(**prompt(text)), timeout=limit)
    ),
    "StreamGenerate": lambda client, text, limit: many(
        client.generation.StreamGenerate(StreamGenerateRequest(**prompt(text)), timeout=limit)
    ),
    "Tag": lambda client, text, limit: one(
        client.generation.Tag(
            TagRequest(text=text, labels=[Label(name="a", description=CANARY), Label(name=CANARY)]), timeout=limit
        )
    ),
}
#: What is wrong with a text, to the text and the seconds that the call may take.
TEXTS: dict[str, tuple[str, float]] = {
    "nothing": (f"{CANARY} hello", 30),
    "unsafe": (f"{CANARY} {UNSAFE_MARK}", 30),
    "too long": (f"{CANARY} " * 6_000, 30),
    "NaN logits": (f"{CANARY} {BROKEN_MARK}", 30),
    "failing step": (f"{CANARY} #raise#", 30),
    "deadline": (f"{CANARY} late " * 20, 0.02),
    "NUL and marks": (f"{CANARY} \0 " + "\u0301" * 50, 30),
}


@dataclass
class Place:
    """Where a process runs, and what it has said besides."""

    directory: Path
    told: list[str] = field(default_factory=list)

    def found(self) -> list[str]:
        """The files under the directory, and what was told, in which the canary is."""
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        bad = [str(path.relative_to(self.directory)) for path in files if traces(path.read_bytes())]
        return bad + [text for text in self.told if traces(text.encode())]


def open_files(pid: int) -> list[str]:
    """The regular files that a process has open and the canary is in, those without a name included."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if descriptor.is_file() and traces(descriptor.read_bytes()):
                found.append(f"open file {descriptor.name}")
    return found


def traces(data: bytes) -> bool:
    return any(form in data for form in FORMS)


@asynccontextmanager
async def writing(place: Place, **variables: str) -> AsyncIterator[Process]:
    """A server in ``place`` that writes all it can: logs, audit log, spans, temp files."""
    root = place.directory
    for name in ("work", "tmp", "out"):
        (root / name).mkdir()
    (root / "key").write_bytes(os.urandom(32).hex().encode())
    settings = {
        "GUARD_METRICS_ADDRESS": "127.0.0.1:0",
        "GUARD_TRACE_ENDPOINT": "http://127.0.0.1:4317",
        "GUARD_AUDIT_FILE": str(root / "out" / "audit.jsonl"),
        "GUARD_AUDIT_KEY_FILE": str(root / "key"),
        "CANARY_SPANS": str(root / "out" / "spans.jsonl"),
        "TMPDIR": str(root / "tmp"),
    }
    with (root / "out" / "stdout").open("wb") as stdout:
        async with started(module="serve_canary", cwd=root / "work", stdout=stdout, **settings | variables) as process:
            yield process
    (root / "out" / "stderr").write_bytes(process.text)


async def called(client: Client, path: str, text: str, limit_s: float) -> tuple[str, str]:
    """The status of a call, and all that it says. Only Tag answers with what the caller wrote: a label."""
    try:
        answer = await PATHS[path](client, text, limit_s)
    except grpc.aio.AioRpcError as error:
        return error.code().name, f"{path}: {error} {error.trailing_metadata()}"
    return "OK", "" if path == "Tag" else f"{path}: {answer}"


async def in_flight(client: Client, paths: Iterable[str]) -> list[asyncio.Future[tuple[str, str]]]:
    """Calls that the server works on."""
    calls: list[asyncio.Future[tuple[str, str]]] = [
        asyncio.ensure_future(called(client, path, f"{CANARY} hello " * 20, 60)) for path in paths
    ]
    await asyncio.sleep(0.5)
    return calls


async def look_at_http(process: Process, place: Place) -> None:
    address = (await process.event("metrics"))["address"]
    for page in ("/metrics", "/stats"):
        place.told.append(await asyncio.to_thread(get, address, page))


async def test_every_path_with_every_text(tmp_path: Path) -> None:
    """Good, unsafe, refused, unreadable, failed, late and cancelled: 6 paths x 8 faults, and 4 broken messages."""
    place, statuses = Place(tmp_path), dict[tuple[str, str], str]()
    async with writing(place, FAKE_STEP_SECONDS="0.03") as process:
        client = await ready(process)
        for fault, (text, limit_s) in TEXTS.items():
            for path in PATHS:
                statuses[fault, path], error = await called(client, path, text, limit_s)
                place.told.append(error)
        for path in PATHS:
            (call,) = await in_flight(client, [path])
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            statuses["cancelled", path] = "CANCELLED"
        for method in ("ModerationService/Classify", "ModerationService/BatchClassify", "GenerationService/Generate"):
            send: Any = client.channel.unary_unary(f"/guard.v1.{method}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await send(b"\x0a\x7f" + CANARY.encode())
            place.told.append(f"{caught.value} {caught.value.trailing_metadata()}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.moderation.Classify(question("x"), metadata=[("canary-header", "x" * 20_000 + "canary-3f9c")])
        place.told.append(f"{caught.value} {caught.value.trailing_metadata()}")
        await look_at_http(process, place)
        assert any((tmp_path / "tmp").iterdir())  # there is something to look at, before the end tidies up
        assert place.found() + open_files(process.process.pid) == []
        process.process.send_signal(signal.SIGINT)
        assert await process.exit_status() == 0
        await client.channel.close()
    assert len(statuses) == 6 * 8
    assert {status for (fault, _), status in statuses.items() if fault == "nothing"} == {"OK"}
    assert statuses["failing step", "Classify"] == statuses["failing step", "Tag"] == "INTERNAL"
    unreadable = {path: status for (fault, path), status in statuses.items() if fault == "NaN logits"}
    assert unreadable.pop("BatchClassify") == "OK"  # item by item
    assert set(unreadable.values()) == {"INTERNAL"}
    assert statuses["too long", "Tag"] == "INVALID_ARGUMENT"
    late = {path: status for (fault, path), status in statuses.items() if fault == "deadline"}
    assert late.pop("BatchClassify") in ("OK", "DEADLINE_EXCEEDED")  # refused item by item, or as a whole
    assert set(late.values()) == {"DEADLINE_EXCEEDED"}
    assert place.found() == []
    events = {event["event"] for event in process.events}
    assert {"starting", "call", "internal_error", "stopped"} <= events
    assert len((tmp_path / "out" / "spans.jsonl").read_text().splitlines()) > 48
    assert (tmp_path / "out" / "audit.jsonl").read_text().count("text_hmac") > 10


STRIKES: dict[str, tuple[str | int, dict[str, str]]] = {
    "engine thread dies": ("#die#", {}),
    "engine hangs": ("#hang#", {"GUARD_STEP_TIMEOUT_S": "1"}),
    "abort in native code": ("#abort#", {}),
    "kill -9": (signal.SIGKILL, {}),
    "segmentation fault": (signal.SIGSEGV, {}),
    "uncaught error": (signal.SIGUSR1, {}),
    "SIGTERM": (signal.SIGTERM, {"GUARD_DRAIN_DELAY_S": "0", "GUARD_GRACE_S": "0.2"}),
}


@pytest.mark.parametrize("strike", STRIKES)
async def test_every_way_to_fall_with_every_path_in_flight(tmp_path: Path, strike: str) -> None:
    """7 ways to crash, hang or be ended, each while calls of all 6 paths are worked on."""
    place = Place(tmp_path)
    how, variables = STRIKES[strike]
    async with writing(place, FAKE_STEP_SECONDS="0.05", **variables) as process:
        client = await ready(process)
        limits = Path(f"/proc/{process.process.pid}/limits").read_text().splitlines()
        assert next(line.split()[4:6] for line in limits if line.startswith("Max core file size")) == ["0", "0"]
        await look_at_http(process, place)
        calls = await in_flight(client, PATHS)
        assert sum(call.done() for call in calls) <= 1
        assert place.found() + open_files(process.process.pid) == []
        if isinstance(how, str):
            calls.append(asyncio.ensure_future(called(client, "Classify", f"{CANARY} {how}", 60)))
        else:
            process.process.send_signal(how)
        if strike == "engine thread dies":
            await process.event("engine_restarted")
        else:
            await process.exit_status()
        ends = await asyncio.gather(*calls)
        await client.channel.close()
    place.told += [error for _, error in ends]
    assert {status for status, _ in ends} & {"UNAVAILABLE", "CANCELLED"}
    assert place.found() == []
    if strike in ("engine thread dies", "uncaught error"):
        kinds = {event["exception"] for event in process.events if event["level"] in ("error", "critical")}
        assert kinds == {"Fatal" if strike == "engine thread dies" else "RuntimeError"}


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    for form in FORMS:
        place = Place(tmp_path / form.hex())
        (place.directory / "tmp").mkdir(parents=True)
        (place.directory / "tmp" / "left").write_bytes(b"\x00" + form + b"\xff")
        assert place.found() == ["tmp/left"]
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        assert open_files(os.getpid()) == []
        file.write(CANARY.encode())
        file.flush()
        assert open_files(os.getpid()) == [f"open file {file.fileno()}"]
    assert Place(tmp_path / "none", [f"error: {CANARY}", "error"]).found() == [f"error: {CANARY}"]
