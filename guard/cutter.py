"""Where a growing text is judged: places that follow from the text alone, never from how it arrives."""

from __future__ import annotations

import re

from guard.tokenizer import Tokenizer

#: A text without spaces is cut after this many bytes for each token of the interval. No token has less than a byte, so
#: this also bounds how many tokens a check can add.
BYTES_PER_TOKEN = 8
_WORD_END = re.compile(r"\S(?=\s)")
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"')\]]*(?=\s)|\S(?=\n)")


class TextCutter:
    """Finds the checkpoints of one growing text."""

    def __init__(self, tokenizer: Tokenizer, every_tokens: int, at_sentence_ends: bool) -> None:
        self._tokenizer = tokenizer
        self._every = every_tokens
        self._at_sentence_ends = at_sentence_ends
        self._last, self._tried = 0, 0  # after the checkpoint ``last``, no place up to ``tried`` is the next one

    def next(self, text: str, last: int) -> int | None:
        """The first checkpoint after ``last`` (characters), or None while ``text`` has not reached it.

        It is decided by the text up to one character after it, so text that comes later changes nothing.
        """
        if last != self._last:
            self._last, self._tried = last, last
        first = last + len(text[last:]) - len(text[last:].lstrip())
        limit = first + self._most(text[first:])
        pattern = _SENTENCE_END if self._at_sentence_ends else _WORD_END
        for match in pattern.finditer(text, max(first, self._tried), min(len(text), limit + 1)):
            if self._at_sentence_ends or self._has_enough(text[last : match.end()]):
                return match.end()
            self._tried = match.end()
        return limit if limit < len(text) else None

    def _most(self, text: str) -> int:
        """Characters of the longest beginning of ``text`` that is cut even without a space."""
        most = self._every * BYTES_PER_TOKEN
        return len(text[:most].encode()[:most].decode(errors="ignore"))

    def _has_enough(self, piece: str) -> bool:
        # Every token has at least one byte: most pieces that are too short need not be tokenized.
        return len(piece.encode()) >= self._every and len(self._tokenizer.encode_text(piece)) >= self._every
