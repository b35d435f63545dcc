from __future__ import annotations

import asyncio
import threading

from guard.conversation import ToolCall
from guard.generation import Delta, TokenLogprob
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


class Pen:
    def __init__(self) -> None:
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def unpause(self) -> None:
        self.paused = False


async def test_a_reader_too_far_behind_holds_the_writer_back() -> None:
    feed, pen = Feed(3), Pen()
    feed.hold_back(pen)
    paused = []
    for index in range(3):
        feed.push(Delta("x", index + 1))
        paused.append(pen.paused)
    assert paused == [False, False, True]
    assert feed.tokens == 3
    feed.push(Delta("yz", 5))  # was being written
    assert await feed.take() == [Piece("xxxyz", 5)]
    assert (pen.paused, feed.tokens) == (False, 0)


async def test_a_feed_that_was_full_before_it_knew_its_writer() -> None:
    feed, pen = Feed(3), Pen()
    feed.push(Delta("xxxx", 4))
    feed.hold_back(pen)
    before, taken = pen.paused, await feed.take()
    assert taken == [Piece("xxxx", 4)]
    assert (before, pen.paused) == (True, False)


async def test_a_writer_on_another_thread_waits_and_goes_on() -> None:
    """Failure test 6: at most ``max_tokens`` wait, however slow the reader, and nothing is lost."""
    feed, letters, most = Feed(8), 2000, 0
    go_on = threading.Event()

    class Thread(threading.Thread):
        def pause(self) -> None:
            go_on.clear()

        def unpause(self) -> None:
            go_on.set()

        def run(self) -> None:
            for index in range(letters):
                assert go_on.wait(10)
                feed.push(Delta("x", index + 1))
            feed.finish()

    writer = Thread()
    feed.hold_back(writer)
    go_on.set()
    writer.start()
    read = ""
    while ready := await asyncio.wait_for(feed.take(), 10):
        read += ready[0].text
        most = max(most, ready[0].tokens)
        await asyncio.sleep(0)
    writer.join()
    assert len(read) == letters
    assert most <= 8


def test_a_loop_that_is_gone_is_left_alone() -> None:
    async def make() -> Feed:
        return Feed(3)

    feed = asyncio.run(make())
    feed.push(Delta("x", 1))
    feed.finish()
