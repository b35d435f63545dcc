from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guard.stops import StopMatcher

LETTERS = st.text("ab", max_size=30)


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_any_split_gives_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    matcher = StopMatcher(stops)
    released = "".join(matcher.feed(piece) for piece in pieces) + matcher.flush()
    # A stop matches as soon as its last character arrives, so the earliest end decides, then the earliest begin.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (released, matcher.matched) == (text, False)
    else:
        assert matcher.matched
        assert text.startswith(released)
        assert not any(stop in released for stop in stops)
        assert any(text.startswith(stop, len(released)) for stop in stops)


def test_text_that_cannot_begin_a_stop_is_released_at_once() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.feed("hello S") == "hello "
    assert matcher.feed("T") == ""
    assert matcher.feed("ART") == "START"
    assert not matcher.matched
