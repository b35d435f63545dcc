"""Server-sent events, in whatever pieces they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import InvalidInputError
from server.ext_proc.events import Event, EventReader

WORDS = st.text("ab:ü {}", min_size=1, max_size=8).filter(lambda text: text.strip() == text)
EVENTS = st.lists(st.builds(Event, st.sampled_from(["", "delta"]), WORDS), max_size=5)


@given(EVENTS, st.sampled_from(["\n", "\r\n"]), st.integers(1, 20))
def test_any_split_gives_the_same_events(events: list[Event], newline: str, size: int) -> None:
    data = b"".join(event.bytes for event in events).decode().replace("\n", newline).encode()
    reader = EventReader(1000)
    found = [event for start in range(0, len(data), size) for event in reader.add(data[start : start + size])]
    assert found + reader.end() == events


def test_comments_lose_their_words() -> None:
    (event,) = EventReader(1000).add(b": secret words\n\n")
    assert event.bytes == b":\n\n"


def test_lines_of_data_are_one_text() -> None:
    (event,) = EventReader(1000).add(b"id: 7\nretry: 1\nevent: a.b\ndata: x\ndata:y\n\n")
    assert event == Event("a.b", "x\ny")
    assert event.bytes == b"event: a.b\ndata: x\ndata: y\n\n"


def test_the_end_may_lack_its_blank_line() -> None:
    reader = EventReader(1000)
    assert reader.add(b"data: x") == []
    assert reader.end() == [Event("", "x")]


@pytest.mark.parametrize("data", [b"data: \xff\n\n", b"event: <b>\ndata: x\n\n", b"data: " + b"x" * 2000])
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        EventReader(1000).add(data)
