"""One batch at a time in an output directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.batch.records import RECORDS
from guard.errors import UnavailableError


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """Create ``output`` and hold its lock; yields the lock's descriptor, which children may inherit.

    The kernel lets go of it when the last process that has it ends, however it ends. Raises UnavailableError while
    another has it.
    """
    (output / RECORDS).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output / RECORDS / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UnavailableError(f"{output}: another batch, or an export that one left running, works here") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
