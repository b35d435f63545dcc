"""What callers do wrong, and what their networks do to them. None of it may show in anybody else's answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import grpc
import grpc.aio

from benchmarks.soak.traffic import Item, Stubs, pause, prompt, question, streamed
from guard.v1 import moderation_pb2

_LONG_TOKENS = 256
#: What an error may be called; INTERNAL and UNKNOWN are bugs whatever was sent.
ALLOWED = frozenset(grpc.StatusCode) - {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
#: INTERNAL in these words is the client's own gRPC library: it was writing when the call ended.
OWN_FAILURE = "Internal error from Core"
#: Who reads nothing is waited for so long.
_SLOW_S = 3.0


async def cancel(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """A call that its caller gives up."""
    calls: list[Any] = [
        stubs.moderation.Classify(question(item)),
        stubs.generation.Generate(prompt(item, _LONG_TOKENS, guarded=True)),
        stubs.generation.StreamGenerate(streamed(prompt(item, _LONG_TOKENS))),
    ]
    await pause(chance, 0.4)
    for call in calls:
        call.cancel()


async def disconnect(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """A connection that ends in the middle of a stream of each kind."""
    own = Stubs(address)
    reading = own.generation.StreamGenerate(streamed(prompt(item, _LONG_TOKENS, guarded=True)))
    judging = own.moderation.StreamClassify()
    start = moderation_pb2.StreamClassifyStart(target=moderation_pb2.TARGET_PROMPT)
    await judging.write(moderation_pb2.StreamClassifyRequest(start=start))
    await judging.write(moderation_pb2.StreamClassifyRequest(text=item.text))
    await reading.read()
    await pause(chance, 0.3)
    await own.channel.close()


async def noise(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """Bytes that are no HTTP/2."""
    _, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    writer.write(chance.randbytes(chance.randint(1, 4096)))
    await pause(chance, 0.1)
    writer.close()


async def malformed(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """A request with a few bytes changed."""
    data = bytearray(question(item).SerializeToString())
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    call: Any = stubs.channel.unary_unary("/guard.v1.ModerationService/Classify")
    await call(bytes(data), timeout=30)


async def oversize(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """More than a message may have, and a bomb that unpacks to it."""
    big = question(Item("x" * (6 << 20), item.unsafe))
    packed = grpc.Compression.Gzip if chance.random() < 0.5 else grpc.Compression.NoCompression
    await stubs.moderation.Classify(big, timeout=30, compression=packed)


async def hurry(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """A deadline that can hardly be met."""
    await stubs.generation.Generate(prompt(item, _LONG_TOKENS), timeout=0.001 + chance.random() * 0.2)


async def slow_reader(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """A stream that nobody reads, with a window that is soon full."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call: Any = channel.unary_stream("/guard.v1.GenerationService/StreamGenerate")
        reading = call(prompt(item, _LONG_TOKENS).SerializeToString(), timeout=60)
        await asyncio.sleep(_SLOW_S)
        reading.cancel()


async def silent_writer(address: str, stubs: Stubs, item: Item, chance: Random) -> None:
    """A stream to be judged that stops in the middle."""
    call = stubs.moderation.StreamClassify(timeout=_SLOW_S)
    await call.write(
        moderation_pb2.StreamClassifyRequest(
            start=moderation_pb2.StreamClassifyStart(target=moderation_pb2.TARGET_PROMPT)
        )
    )
    with suppress(asyncio.InvalidStateError):  # it was refused
        await call.write(moderation_pb2.StreamClassifyRequest(text=item.text[: len(item.text) // 2]))
    await call.code()


Fault = Callable[[str, Stubs, Item, Random], Awaitable[None]]
FAULTS: tuple[Fault, ...] = (
    cancel,
    cancel,
    disconnect,
    disconnect,
    noise,
    malformed,
    malformed,
    malformed,
    oversize,
    hurry,
    hurry,
    slow_reader,
    silent_writer,
)


def resident_bytes(pid: int, what: str = "VmRSS") -> int:
    """Resident memory of a process: now, or at its highest (VmHWM)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what + ":"))


def open_files(pid: int) -> int:
    """Files and sockets that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
