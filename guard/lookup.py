"""Prompt lookup: proposing what comes next from what came before (Saxena, "Prompt Lookup Decoding", 2023).

Summaries, rewrites and extractions repeat stretches of their prompt. When the latest tokens have occurred before, the
tokens that followed them then are the draft; the model checks all of it in one step, and only what it would have
written itself is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

#: So many latest tokens must have occurred before; the longer match counts, it is more often right.
_MATCHES = (4, 2)
#: A draft grows while it is right and shrinks when it is wrong: a wrong one costs more time than no draft. These and
#: _MATCHES are close to the best for int8 and float32 together, by texts of benchmarks/generation replayed with
#: measured step times.
_SHORTEST, _LONGEST = 3, 16


class PromptLookup:
    """Drafts for one text. ``drafted`` and ``accepted`` count tokens."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.drafted = 0
        self.accepted = 0
        self._tokens: list[int] = []
        self._length = _SHORTEST
        #: Where the latest occurrence of a run of any of _MATCHES tokens ends, but for the one at the very end.
        self._ends: dict[tuple[int, ...], int] = {}
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """Note the next token of the text."""
        for match in _MATCHES:
            if len(self._tokens) >= match:
                self._ends[tuple(self._tokens[-match:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, room: int) -> tuple[int, ...]:
        """At most ``room`` tokens that may follow; empty when the latest ones are new."""
        for match in _MATCHES:
            if (end := self._ends.get(tuple(self._tokens[-match:]))) is not None:
                return tuple(self._tokens[end : end + min(self._length, room)])
        return ()

    def note(self, drafted: int, accepted: int) -> None:
        """Say how many of a draft's tokens were right."""
        self.drafted += drafted
        self.accepted += accepted
        right = accepted == drafted
        self._length = min(2 * self._length, _LONGEST) if right else max(self._length // 2, _SHORTEST)
