"""Resident memory of this process, for tests of memory that has to go back; Linux only."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and only Linux takes pages back")


def resident_bytes() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
