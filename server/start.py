"""What a server process does first: say what it is, see to it that a crash leaves no text of requests behind, and that
memory which is freed goes back to the system.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import resource
import sys
from dataclasses import fields
from importlib.metadata import version

from guard.engine.memory import share_one_heap
from server import log
from server.settings import Settings

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def begin(settings: Settings) -> None:
    """Logs as JSON lines, no core files, one heap, and a line that tells version and settings apart from others."""
    log.configure()
    forbid_core_dumps()
    share_one_heap()
    log.event(logging.INFO, "starting", version=version("guardlet"), settings=digest(settings))


def digest(settings: Settings) -> str:
    """SHA-256 of all settings, 64 hexadecimal digits: servers that are set up alike have the same."""
    values = {field.name: str(getattr(settings, field.name)) for field in fields(settings)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def forbid_core_dumps() -> None:
    """For this process, for good: its memory, with what it is working on, would end up on a disk.

    A limit of 0 stops files but not a handler that the kernel pipes the memory to (core_pattern with a |, as systemd's
    and apport's), so on Linux the process is marked as not to be dumped as well; see prctl(2) and core(5).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
