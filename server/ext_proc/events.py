"""Server-sent events: from bytes, in whatever pieces they come, to events and back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from guard.errors import InvalidInputError

DONE = "[DONE]"
_ENDS = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINES = re.compile("\r\n|\n|\r")
_NAME = re.compile("[A-Za-z0-9_.-]{0,64}")


@dataclass(frozen=True)
class Event:
    """``data`` is empty for events that have none, such as comments that keep a connection alive."""

    name: str
    data: str

    @property
    def bytes(self) -> bytes:
        """The event as it is sent. A comment's words are not: nobody has judged them."""
        if not self.data:
            return b":\n\n"
        lines = [f"event: {self.name}"] if self.name else []
        lines += [f"data: {line}" for line in self.data.split("\n")]
        return ("\n".join(lines) + "\n\n").encode()


class EventReader:
    """Reads a stream of events as WHATWG's HTML standard has it, 9.2.6; ids and retry times are dropped."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of one event."""
        self._limit = limit
        self._waiting = bytearray()

    def add(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes. Raises InvalidInputError for what is no UTF-8, or too long."""
        self._waiting += data
        found = []
        start = 0
        while (end := _ENDS.search(self._waiting, start)) is not None:
            # "\r" may be half of "\r\n": an event that ends in "\r\r" is complete all the same.
            found.append(_event(bytes(self._waiting[start : end.start()])))
            start = end.end()
        del self._waiting[:start]
        if len(self._waiting) > self._limit:
            raise InvalidInputError("body", f"an event of more than {self._limit} bytes")
        return found

    def end(self) -> list[Event]:
        """What came without the blank line that should end it."""
        rest, self._waiting = bytes(self._waiting), bytearray()
        return [_event(rest)] if rest.strip() else []


def _event(block: bytes) -> Event:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInputError("body", "an event that is not UTF-8") from None
    name, data = "", []
    for line in _LINES.split(text.removeprefix("\ufeff")):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
    if not _NAME.fullmatch(name):
        raise InvalidInputError("body", "an event whose name is no word")
    return Event(name, "\n".join(data))
