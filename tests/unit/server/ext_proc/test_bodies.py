"""Bodies: decompressed within a bound, read as everybody reads them."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import InvalidInputError
from server.ext_proc.bodies import BodyTooLargeError, Decoder, decoded, read_body, status_of

LIMIT = 1000


def encoded(body: bytes, coding: str) -> bytes:
    """``body`` in an HTTP coding."""
    if coding.lower() == "gzip":
        return gzip.compress(body)
    return zlib.compress(body) if coding == "deflate" else body


@given(st.binary(max_size=LIMIT), st.sampled_from(["", "identity", "GZIP", "deflate"]), st.integers(1, 50))
def test_pieces_are_decoded_as_the_whole(body: bytes, coding: str, size: int) -> None:
    sent = encoded(body, coding)
    decoder = Decoder(coding, LIMIT)
    assert b"".join(decoder.add(sent[start : start + size]) for start in range(0, len(sent), size)) == body
    decoder.end()


def test_a_stream_may_be_longer_than_its_pieces() -> None:
    decoder = Decoder("", LIMIT, endless=True)
    assert [len(decoder.add(bytes(LIMIT))) for _ in range(3)] == [LIMIT] * 3
    with pytest.raises(BodyTooLargeError):
        Decoder("gzip", LIMIT, endless=True).add(gzip.compress(bytes(LIMIT + 1)))


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_more_than_the_limit_is_refused(coding: str) -> None:
    sent = encoded(bytes(LIMIT + 1), coding)
    with pytest.raises(BodyTooLargeError) as caught:
        decoded(sent, coding, LIMIT)
    assert status_of(caught.value) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("sent", "coding", "status"),
    [
        (b"x", "br", 415),
        (b"x", "gzip, gzip", 415),
        (b"x", "gzip", 400),
        (gzip.compress(b"abc")[:-1], "gzip", 400),
        (gzip.compress(b"abc") + b"rest", "gzip", 400),
        (b"", "gzip", 400),
    ],
)
def test_what_is_not_that_coding_is_refused(sent: bytes, coding: str, status: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        decoded(sent, coding, LIMIT)
    assert status_of(caught.value)[0] == status


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": "\\ud800"}', '{"a": 1}'.encode("utf-16")]
)
def test_what_others_might_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        read_body(body)


def test_nesting_is_bounded() -> None:
    with pytest.raises(InvalidInputError):
        read_body(b'{"a":' * 100_000)
    assert read_body(json.dumps({"a": [1, "ü"]}).encode()) == {"a": [1, "ü"]}
