"""Where a bracketed value ends, in a text that may still be growing."""

from __future__ import annotations

from guard.tools.values import MAX_DEPTH

_CLOSERS = {"{": "}", "[": "]", "(": ")"}


class Brackets:
    """Reads from an opening bracket to the one that closes it, past strings in either kind of quotes.

    That is right for JSON and for Python literals; a text that is neither may end elsewhere, and its parser refuses it.
    """

    def __init__(self, start: int) -> None:
        """``start`` is the place of the opening bracket."""
        self.start = start
        self._position = start
        self._closers: list[str] = []
        self._quote = ""
        self._escaped = False

    def advance(self, text: str) -> int | None:
        """The place after the closing bracket, or None while ``text``, which may have grown, has none.

        Raises ValueError when the brackets do not match or nest deeper than MAX_DEPTH.
        """
        while self._position < len(text):
            character = text[self._position]
            self._position += 1
            if self._quote:
                self._read_quoted(character)
            elif character in "\"'":
                self._quote = character
            elif character in _CLOSERS:
                self._closers.append(_CLOSERS[character])
                if len(self._closers) > MAX_DEPTH:
                    raise ValueError("nested too deeply")
            elif character in ")]}":
                if self._closers.pop() != character:
                    raise ValueError("brackets that do not match")
                if not self._closers:
                    return self._position
        return None

    def _read_quoted(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == self._quote:
            self._quote = ""
