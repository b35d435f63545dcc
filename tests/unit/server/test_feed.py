from __future__ import annotations

import asyncio
import threading

import pytest

from guard.conversation import ToolCall
from guard.generation import Delta, TokenLogprob
from server.errors import SlowReaderError
from server.feed import Feed, Piece


async def test_pieces_come_out_joined_and_in_order() -> None:
    feed = Feed(100)
    for index, letter in enumerate("abc"):
        feed.push(Delta(letter, 2 * (index + 1)))
    feed.finish()
    await asyncio.sleep(0)
    assert await feed.take() == [Piece("abc", 6)]
    assert await feed.take() == []


async def test_choices_are_kept_apart() -> None:
    feed, token = Feed(100), TokenLogprob(7, "c", -0.5)
    call = ToolCall("1", "f", "{}")
    feed.push(Delta("a", 1))
    feed.push(Delta("b", 1, 1))
    feed.push(Delta("c", 3, 0, (token,), (call,)))
    feed.push(Delta("d", 2, 1))
    feed.finish()
    await asyncio.sleep(0)
    assert await feed.take() == [Piece("ac", 3, 0, (token,), (call,)), Piece("bd", 2, 1)]


async def test_nothing_is_lost_between_threads() -> None:
    feed, text = Feed(100_000), [chr(0x4E00 + index) for index in range(5000)]

    def write() -> None:
        for index, letter in enumerate(text):
            feed.push(Delta(letter, index + 1))
        feed.finish()

    threading.Thread(target=write).start()
    pieces = []
    while ready := await asyncio.wait_for(feed.take(), 10):
        pieces += ready
    assert "".join(piece.text for piece in pieces) == "".join(text)
    assert sum(piece.tokens for piece in pieces) == 5000


async def test_a_reader_too_far_behind_stops_the_writer() -> None:
    feed, stopped = Feed(3), []
    feed.stop = lambda: stopped.append(True)
    for index in range(3):
        feed.push(Delta("x", index + 1))
    await asyncio.sleep(0)
    assert not stopped
    feed.push(Delta("x", 4))
    await asyncio.sleep(0)
    assert stopped == [True]
    with pytest.raises(SlowReaderError, match="4 tokens wait to be read, the limit is 3"):
        await feed.take()


async def test_taking_makes_room() -> None:
    feed = Feed(3)
    for index in range(20):
        feed.push(Delta("x", index + 1))
        assert await feed.take() == [Piece("x", 1)]


def test_a_loop_that_is_gone_is_left_alone() -> None:
    async def make() -> Feed:
        return Feed(3)

    feed = asyncio.run(make())
    feed.push(Delta("x", 1))
    feed.finish()
