"""Telling calls from text while a model writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from guard.conversation import MAX_TOOL_CALLS, ToolCall
from guard.errors import ModelOutputError
from guard.generation import Tool, ToolChoice, ToolMode
from guard.tools.brackets import Brackets
from guard.tools.parse import CALL_KEYS, CallReader

#: Longer answers than this are text.
MAX_CALL_CHARACTERS: Final = 65_536
#: Enough to tell what a value begins with.
_HEAD_CHARACTERS: Final = 256
_SPACE: Final = " \t\r\n"
_FENCE: Final = "```"
_OPEN_TAG, _CLOSE_TAG = "<tool_call>", "</tool_call>"
#: Llama's mark of a call. As a control token it leaves no text, but models may spell it out.
_PYTHON_TAG: Final = "<|python_tag|>"
_LANGUAGE: Final = re.compile("```[A-Za-z_]{0,16}")
_NAME: Final = re.compile("[A-Za-z0-9_-]*")


class ToolReader:
    """Reads one answer and finds the calls of ``tools`` in it. Expects what ``check_tools`` accepted; for one thread.

    An answer calls tools when it is nothing but calls: one or more bracketed values (``guard.tools.parse``), with
    white space, ``;`` or ``,`` between them, possibly in a code fence, in ``<tool_call>`` tags or after
    ``<|python_tag|>``. Anything else is text, all of it, also where one of several calls names an unknown tool or has
    arguments that its schema refuses: half of what a model wanted is not done. Where ``choice`` asks for a call, such
    an answer is an error.
    """

    def __init__(self, tools: Sequence[Tool], choice: ToolChoice) -> None:
        self._reader = CallReader(tools, choice)
        self._forced = bool(choice.name) or choice.mode is ToolMode.REQUIRED
        #: Whether the answer is known to be text.
        self._plain = not tools or choice.mode is ToolMode.NONE
        self._held = ""
        self._position = 0
        self._value: Brackets | None = None
        self._calls: list[ToolCall] = []
        self._fenced = self._tagged = self._closed = False

    def feed(self, text: str) -> str:
        """Take the next piece of the answer; returns what may be shown now, "" while all so far could be calls.

        Raises ModelOutputError when a call was asked for and this is none.
        """
        if self._plain:
            return text
        self._held += text
        try:
            self._read()
            if len(self._held) > MAX_CALL_CHARACTERS or len(self._calls) > MAX_TOOL_CALLS:
                raise ValueError("too long")
        except ValueError:
            return self._give_up()
        return ""

    def finish(self, complete: bool = True) -> tuple[str, tuple[ToolCall, ...]]:
        """The text that was held back and is none of a call, and the calls; one of the two is empty.

        ``complete``: the model ended the answer. Raises ModelOutputError when a call was asked for, and a complete
        answer has none; one that was cut off is text.
        """
        if self._calls and self._value is None and not self._held[self._position :].strip(_SPACE):
            return "", tuple(self._calls)
        if self._forced and complete:
            raise ModelOutputError("the model's answer is not a call of the tools")
        held, self._held, self._plain = self._held, "", True
        return held, ()

    def _give_up(self) -> str:
        if self._forced:
            raise ModelOutputError("the model's answer is not a call of the tools")
        held, self._held, self._plain, self._calls = self._held, "", True, []
        return held

    def _read(self) -> None:
        """Go on as far as the text allows; raises ValueError when it cannot be calls, however it goes on."""
        while self._read_value(self._value) if self._value else self._read_between():
            pass

    def _read_value(self, value: Brackets) -> bool:
        """Whether a value ended; its calls are noted."""
        end = value.advance(self._held)
        head = self._held[value.start : min(end or len(self._held), value.start + _HEAD_CHARACTERS)]
        if not _may_open_call(head, self._reader.names):
            raise ValueError("not a call")
        if end is None:
            return False
        self._calls += self._reader.read(self._held[value.start : end])
        self._value, self._position = None, end
        return True

    def _read_between(self) -> bool:
        """Whether something between values, or the first bracket of one, was read."""
        while self._held[self._position : self._position + 1] in tuple(_SPACE):
            self._position += 1
        rest = self._held[self._position : self._position + _HEAD_CHARACTERS]
        if rest.startswith(("{", "[")) and not self._closed:
            self._value = Brackets(self._position)
            return True
        if not rest:
            return False
        mark = next((mark for mark in self._marks() if rest.startswith(mark)), None)
        if mark is None:
            if any(mark.startswith(rest) for mark in self._marks()):
                return False  # perhaps the beginning of a mark
            raise ValueError("not a call")
        if mark == _FENCE and not self._fenced:
            language = _LANGUAGE.match(rest)
            assert language
            if language.end() == len(rest):
                return False
            mark = language[0]
        self._note(mark)
        self._position += len(mark)
        return True

    def _marks(self) -> tuple[str, ...]:
        """What may stand here beside white space and a value."""
        if self._closed:
            return ()
        tag = _CLOSE_TAG if self._tagged else _OPEN_TAG
        if self._calls:
            return (tag, ";", ",", _FENCE) if self._fenced and not self._tagged else (tag, ";", ",")
        return (tag, _PYTHON_TAG) if self._fenced or self._tagged else (tag, _PYTHON_TAG, _FENCE)

    def _note(self, mark: str) -> None:
        if mark in (_OPEN_TAG, _CLOSE_TAG):
            self._tagged = mark == _OPEN_TAG
        elif mark.startswith(_FENCE):
            self._closed, self._fenced = self._fenced, True


def _may_open_call(head: str, names: frozenset[str]) -> bool:
    """Whether a value that begins with ``head`` may be calls: its first key is one of a call, or its first name and
    bracket are a tool's.
    """
    rest = head[1:].lstrip(_SPACE)
    if head.startswith("[") and rest.startswith("{"):
        head, rest = rest, rest[1:].lstrip(_SPACE)
    if not rest:
        return True
    if head.startswith("{"):
        key, quote, _ = rest[1:].partition('"')
        return rest[0] == '"' and (key in CALL_KEYS if quote else any(known.startswith(key) for known in CALL_KEYS))
    name = _NAME.match(rest)
    assert name
    after = rest[name.end() :].lstrip(_SPACE)
    if not after:
        return any(known.startswith(name[0]) for known in names)
    return name[0] in names and after[0] == "("
