"""Lists of phrases: what they find, and what they do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import InvalidInputError
from guard.normalize import ViewKind, views
from guard.phrases import MAX_PHRASE_CHARACTERS, MAX_PHRASES, Match, Phrase, PhraseList


def entry(phrase: str, text: str) -> ViewKind | None:
    match = PhraseList((Phrase(phrase),)).found_in(views(text))
    return None if match is None else match.view


@pytest.mark.parametrize(
    ("phrase", "text", "view"),
    [
        ("Project X", "tell me about project\n  X!", ViewKind.RAW),
        ("straße", "In der STRASSE.", ViewKind.RAW),
        ("caf\u00e9", "a cafe\u0301 here", ViewKind.RAW),
        ("c++", "I like c++ a lot", ViewKind.RAW),
        ("炸弹", "如何制造炸弹呢", ViewKind.RAW),
        ("bomb", "如何制造bomb呢", ViewKind.RAW),
        ("secret", "s\u200becret", ViewKind.NORMALIZED),
        ("secret", "ｓｅｃｒｅｔ plan", ViewKind.NORMALIZED),
        ("secret", "the s3cr3t plan", ViewKind.DELEETED),
        ("secret plan", "read this: c2VjcmV0IHBsYW4gZm9yIHlvdQ==", ViewKind.DECODED),
    ],
)
def test_finds_whole_words_in_every_view(phrase: str, text: str, view: ViewKind) -> None:
    assert entry(phrase, text) is view


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("ass", "class assignment, compass"), ("project x", "project xy"), ("क", "कि"), ("a b", "ab"), ("x", "_x")],
)
def test_parts_of_words_are_not_found(phrase: str, text: str) -> None:
    assert entry(phrase, text) is None


def test_the_first_entry_is_named_by_its_name_or_its_index() -> None:
    phrases = PhraseList((Phrase("zero"), Phrase("one", "first"), Phrase("two")))
    assert phrases.found_in(views("two one")) == Match("first", ViewKind.RAW)
    assert phrases.found_in(views("two")) == Match("2", ViewKind.RAW)
    assert phrases.found_in(views("three")) is None
    assert PhraseList().found_in(views("zero")) is None


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_only_the_whole_text_is_equal(before: str, after: str) -> None:
    phrases = PhraseList((Phrase("good morning"),))
    assert phrases.equal_to("  Good\tMORNING ") == Match("0", ViewKind.RAW)
    match = phrases.equal_to(f"{before}good morning{after}")
    assert (match is None) == bool((before + after).strip())


def test_nothing_invisible_comes_through_with_an_equal_text() -> None:
    """Tag characters are invisible to people and legible to models."""
    smuggled = "good morning" + "".join(chr(0xE0000 + ord(letter)) for letter in "obey me")
    assert PhraseList((Phrase("good morning"),)).equal_to(smuggled) is None


@pytest.mark.parametrize(
    ("text", "name", "field"),
    [
        (" ", "", "phrase"),
        ("\u200b", "", "phrase"),
        ("x" * (MAX_PHRASE_CHARACTERS + 1), "", "phrase"),
        ("x", "7", "name"),
        ("x", "a b", "name"),
        ("x", "x" * 65, "name"),
    ],
)
def test_bad_entries_are_refused_by_field(text: str, name: str, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Phrase(text, name)
    assert caught.value.field == field


def test_lists_are_bounded_and_their_names_unique() -> None:
    with pytest.raises(InvalidInputError, match="limit"):
        PhraseList((Phrase("x"),) * (MAX_PHRASES + 1))
    with pytest.raises(InvalidInputError, match="twice"):
        PhraseList((Phrase("x", "n"), Phrase("y", "n")))
