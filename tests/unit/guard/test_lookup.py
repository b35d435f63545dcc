"""What holds however the lengths of matches and drafts are tuned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guard.lookup import PromptLookup

SHORTEST_MATCH, SURE_MATCH = 2, 6
TEXTS = st.lists(st.integers(0, 3), max_size=60)


def continuations(tokens: list[int], match: int) -> list[list[int]]:
    """What followed each earlier occurrence of the last ``match`` tokens, at least one token."""
    if len(tokens) < match:
        return []
    return [tokens[end:] for end in range(match, len(tokens)) if tokens[end - match : end] == tokens[-match:]]


@given(prompt=TEXTS, text=TEXTS, room=st.integers(0, 20))
def test_a_draft_is_what_followed_an_earlier_occurrence(prompt: list[int], text: list[int], room: int) -> None:
    lookup, tokens = PromptLookup(prompt), list(prompt)
    for token in text:
        lookup.add(token)
        tokens.append(token)
        draft = list(lookup.draft(room))
        assert len(draft) <= room
        seen = continuations(tokens, SHORTEST_MATCH)
        assert not draft or any(after[: len(draft)] == draft for after in seen)
        assert draft or room == 0 or not continuations(tokens, SURE_MATCH)


def test_the_latest_occurrence_counts() -> None:
    run = [1, 2, 3, 4, 5, 6]
    assert PromptLookup([*run, 7, *run, 8, *run]).draft(1) == (8,)


def test_a_longer_match_counts_more_than_a_later_one() -> None:
    assert PromptLookup([1, 2, 3, 4, 50, 51, 3, 4, 60, 61, 1, 2, 3, 4]).draft(2) == (50, 51)


def test_drafts_grow_while_they_are_right_and_shrink_when_wrong() -> None:
    run = list(range(10, 18))
    lookup = PromptLookup([*run, *range(100, 200), *run])
    sizes, accepted = [], 0
    for right in [True] * 5 + [False] * 5:
        draft = lookup.draft(100)
        assert list(draft) == list(range(100, 100 + len(draft)))
        sizes.append(len(draft))
        accepted += len(draft) if right else 1
        lookup.note(len(draft), len(draft) if right else 1)
    assert sizes[:6] == sorted(sizes[:6]) and sizes[5:] == sorted(sizes[5:], reverse=True)
    assert sizes[0] == sizes[-1] < sizes[5] <= 16
    assert (lookup.drafted, lookup.accepted) == (sum(sizes), accepted)


def test_new_text_gets_no_draft() -> None:
    assert PromptLookup([]).draft(9) == PromptLookup([1]).draft(9) == PromptLookup(range(50)).draft(9) == ()
    assert PromptLookup([1, 2, 3, 4, 5, 6] * 2).draft(0) == ()
