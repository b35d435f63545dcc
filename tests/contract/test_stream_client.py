"""Our own clients of StreamClassify against the real server: a verdict arrives however fast a caller writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from guard.client import (
    AsyncGuardClient,
    GuardClient,
    RequestRejectedError,
    ServerBusyError,
    StreamOptions,
    UnsafeTextError,
)

from .fakes import UNSAFE_MARK, FakeModels
from .running import Running, running, until

OPTIONS = StreamOptions(check_every_tokens=8)
BEFORE = "Once upon a time there was été 🙂 and "
TEXT = f"{BEFORE}{UNSAFE_MARK} {'and much more ' * 30}"


def blocking(address: str, pieces: Sequence[str]) -> str:
    """What the blocking client shows; raises what it raises but UnsafeTextError."""
    seen = ""
    with GuardClient(address) as client:
        try:
            for text in client.moderated("Tell me a story", pieces, options=OPTIONS):
                seen += text
        except UnsafeTextError as error:
            assert [found.code for found in error.categories] == ["S2"]
    return seen


async def awaited(client: AsyncGuardClient, pieces: Sequence[str]) -> str:
    """The same of the asyncio client."""
    seen = ""
    try:
        async for text in client.moderated("Tell me a story", pieces, options=OPTIONS):
            seen += text
    except UnsafeTextError as error:
        assert [found.code for found in error.categories] == ["S2"]
    return seen


async def test_both_clients_show_the_same(server: Running) -> None:
    """Failure test 26."""
    async with AsyncGuardClient(server.app.address) as client:
        for pieces in ([TEXT], list(TEXT)):
            shown = {await asyncio.to_thread(blocking, server.app.address, pieces)}
            shown |= set(await asyncio.gather(*(awaited(client, pieces) for _ in range(20))))
            (text,) = shown
            assert text
            assert BEFORE.startswith(text)
        assert await awaited(client, list(BEFORE)) == BEFORE
        assert await asyncio.to_thread(blocking, server.app.address, list(BEFORE)) == BEFORE
    _, classifier = server.app.registry.guard()
    await until(lambda: classifier.engine.kv_bytes_in_use == 0)
    await until(lambda: server.app.gates["guard.v1.ModerationService"].requests == 0)


async def test_a_refusal_keeps_its_reason_however_fast_the_caller_writes(models: FakeModels) -> None:
    """Failure test 1."""
    async with running(models, max_requests=1) as server, AsyncGuardClient(server.app.address) as client:
        gate = server.app.gates["guard.v1.ModerationService"]
        with gate.admit(0):
            for _ in range(20):
                with pytest.raises(ServerBusyError) as busy:
                    await awaited(client, list(TEXT))
                assert busy.value.reason == "QUEUE_FULL"
                assert busy.value.retry_after_s
                with pytest.raises(ServerBusyError):
                    await asyncio.to_thread(blocking, server.app.address, list(TEXT))
        with pytest.raises(RequestRejectedError) as rejected:
            await client.stream_classify([], [" "]).result()
        assert [violation.field for violation in rejected.value.field_violations] == ["text"]
