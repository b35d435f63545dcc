"""Bodies of HTTP messages: decompressed within a bound, and strictly one JSON object."""

from __future__ import annotations

import zlib
from typing import Any

from guard.errors import InvalidInputError
from guard.tools.values import read_object

#: What ``zlib`` calls the formats of the HTTP codings that can be read here. Others are refused.
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
READABLE = "identity, gzip or deflate"


class Decoder:
    """Takes the HTTP coding of a body off, piece by piece. Raises InvalidInputError for a coding not in READABLE."""

    def __init__(self, coding: str, limit: int, endless: bool = False) -> None:
        """``coding``: of the header content-encoding. ``limit``: bytes that may come out altogether; of one piece when
        the body is ``endless``, a stream that is not kept.
        """
        coding = coding.strip().lower()
        self._inflating = None
        if coding not in ("", "identity"):
            if coding not in _WINDOW_BITS:
                raise InvalidInputError("content-encoding", f"cannot be read; expected {READABLE}")
            self._inflating = zlib.decompressobj(_WINDOW_BITS[coding])
        self._limit = limit
        self._left = limit
        self._endless = endless

    def add(self, data: bytes) -> bytes:
        """What ``data`` stands for. Raises InvalidInputError for what is too large or no data of that coding."""
        if self._inflating is not None:
            try:
                data = self._inflating.decompress(data, self._left + 1)
            except zlib.error:
                raise InvalidInputError("body", "is not in its content-encoding") from None
            if self._inflating.unused_data:  # another reader might go on where this one stops
                raise InvalidInputError("body", "goes on after its compressed data")
        if len(data) > self._left:
            raise BodyTooLargeError(self._limit)
        if not self._endless:
            self._left -= len(data)
        return data

    def end(self) -> None:
        """The body is complete. Raises InvalidInputError when its compressed data is not."""
        if self._inflating is not None and not self._inflating.eof:
            raise InvalidInputError("body", "its compressed data is cut short")


class BodyTooLargeError(InvalidInputError):
    """More bytes than may be judged; nothing was."""

    reason = "BODY_TOO_LARGE"

    def __init__(self, limit: int) -> None:
        super().__init__("body", f"more than {limit} bytes after decompression")


def read_body(data: bytes) -> dict[str, Any]:
    """The JSON object that a body is, as every parser reads it: UTF-8, no key twice, no NaN. Raises
    InvalidInputError.
    """
    try:
        return read_object(data.decode("utf-8"))
    except ValueError:
        raise InvalidInputError("body", "expected one JSON object in UTF-8, without a key that comes twice") from None


def decoded(data: bytes, coding: str, limit: int) -> bytes:
    """A whole body without its HTTP coding; raises as Decoder."""
    decoder = Decoder(coding, limit)
    found = decoder.add(data)
    decoder.end()
    return found


def status_of(error: InvalidInputError) -> tuple[int, str]:
    """The HTTP status, and the code in OpenAI's sense, for a request that cannot be judged."""
    if isinstance(error, BodyTooLargeError):
        return 413, "body_too_large"
    if error.field == "content-encoding":
        return 415, "unsupported_content_encoding"
    return 400, "not_readable"
