"""Phrases that decide without a model: what a deny list finds in a text, and what an allow list lets through."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from guard.errors import InvalidInputError
from guard.normalize import View, ViewKind, normalize

MAX_PHRASES = 1000
MAX_PHRASE_CHARACTERS = 256
#: Names are echoed in responses and logs, so they are no free text; they are no numbers, as an index is one.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
#: Thai, Lao, Myanmar, Khmer, Hiragana, Katakana and Han are written without spaces: there a word has no visible ends.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Phrase:
    """One entry. Raises InvalidInputError."""

    text: str
    name: str = ""

    def __post_init__(self) -> None:
        if not fold(normalize(self.text)):
            raise InvalidInputError("phrase", "is empty or invisible")
        if len(self.text) > MAX_PHRASE_CHARACTERS:
            raise InvalidInputError("phrase", f"{len(self.text)} characters, the limit is {MAX_PHRASE_CHARACTERS}")
        if self.name and not _NAME.fullmatch(self.name):
            raise InvalidInputError("name", "expected a letter, then at most 63 letters, digits or ._-")


@dataclass(frozen=True)
class Match:
    """Which entry was found (its name, or its index as text) in which view."""

    entry: str
    view: ViewKind


@dataclass(frozen=True)
class PhraseList:
    """At most MAX_PHRASES entries. Upper and lower case and the amount of white space make no difference.

    Raises InvalidInputError.
    """

    phrases: tuple[Phrase, ...] = ()

    def __post_init__(self) -> None:
        if len(self.phrases) > MAX_PHRASES:
            raise InvalidInputError("phrases", f"{len(self.phrases)} given, the limit is {MAX_PHRASES}")
        names = [phrase.name for phrase in self.phrases if phrase.name]
        if len(set(names)) != len(names):
            raise InvalidInputError("phrases", "a name is given twice")

    def __len__(self) -> int:
        return len(self.phrases)

    def found_in(self, views: Iterable[View]) -> Match | None:
        """The first entry that stands in one of the views as whole words."""
        for view in views if self.phrases else ():
            text = fold(view.text)
            for entry, form in self._forms:
                if _has_words(text, form):
                    return Match(entry, view.kind)
        return None

    def equal_to(self, text: str) -> Match | None:
        """The entry that ``text`` is, as a whole and as it came: views drop characters that a reader may still see."""
        entry = self._wholes.get(fold(text)) if self.phrases else None
        return None if entry is None else Match(entry, ViewKind.RAW)

    @cached_property
    def _forms(self) -> tuple[tuple[str, str], ...]:
        """Entry and folded phrase; a second time as the normalized view would show it, where that is different."""
        found = []
        for index, phrase in enumerate(self.phrases):
            for form in dict.fromkeys((fold(phrase.text), fold(normalize(phrase.text)))):
                found.append((phrase.name or str(index), form))
        return tuple(found)

    @cached_property
    def _wholes(self) -> dict[str, str]:
        return {fold(phrase.text): phrase.name or str(index) for index, phrase in enumerate(self.phrases)}


def fold(text: str) -> str:
    """``text`` less the differences that lists do not see: case, white space, composed or decomposed accents."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _has_words(text: str, form: str) -> bool:
    start = text.find(form)
    while start >= 0:
        end = start + len(form)
        cut_left = start > 0 and _one_word(text[start - 1], form[0])
        cut_right = end < len(text) and _one_word(form[-1], text[end])
        if not cut_left and not cut_right:
            return True
        start = text.find(form, start + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Whether two neighbours belong to the same word."""
    return _is_letter(left) and _is_letter(right) and not (_UNSPACED.match(left) or _UNSPACED.match(right))


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
