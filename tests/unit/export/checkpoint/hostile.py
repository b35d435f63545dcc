"""Damaging files at random: a reader may then only raise this project's errors, and ask for little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from guard.errors import CheckpointError, UnsupportedError

#: Bytes that mean something to a header: extremes, signs, digits, JSON's own characters.
_TELLING = b'\x00\x01\x7f\x80\xff09-{}[]",:'


@st.composite
def damaged(draw: st.DrawFn, original: bytes, header_bytes: int) -> bytes:
    """``original`` with a few bytes of its first ``header_bytes`` replaced, inserted or removed, perhaps cut short."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, min(header_bytes, len(data)) - 1))
        kind = draw(st.sampled_from(("replace", "insert", "remove", "number", "cut")))
        if kind == "replace":
            data[position] = draw(st.sampled_from(_TELLING) | st.integers(0, 255))
        elif kind == "insert":
            data[position:position] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del data[position : position + draw(st.integers(1, 9))]
        elif kind == "number":
            number = draw(st.sampled_from((0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)))
            data[position : position + 8] = number.to_bytes(8, "little")
        else:
            del data[position:]
        if not data:
            return b""
    return bytes(data)


def check_refusal_or_success(read: Callable[[Path], None], data: bytes, path: Path, peak_bytes: int) -> None:
    """``read`` must succeed or raise this project's errors, and never hold more than ``peak_bytes`` at once."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        read(path)
    except (CheckpointError, UnsupportedError) as error:
        assert len(str(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < peak_bytes
