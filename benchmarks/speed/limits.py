"""A process under a memory limit: a control group's where one can be made, else a limit on its own private memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
MIB = 1 << 20


@dataclass(frozen=True)
class Method:
    """How a limit is set. ``real``: by the kernel on all memory that a container's limit counts, page cache too."""

    name: str
    real: bool
    root: Path | None = None


CGROUP_V1 = "control group v1"
CGROUP_V2 = "control group v2"
RLIMIT = "RLIMIT_DATA: private memory only, file-backed pages are not counted"


def method(v1: Path = _V1, v2: Path = _V2) -> Method:
    """The strictest one that works here."""
    if _can_make(v1, "memory.limit_in_bytes"):
        return Method(CGROUP_V1, True, v1)
    if _can_make(v2, "memory.max"):
        return Method(CGROUP_V2, True, v2)
    return Method(RLIMIT, False)


class Limited:
    """A group with a limit of ``limit_bytes``; leaving the block ends what is left in it. Swap is not allowed where
    that can be said.
    """

    def __init__(self, how: Method, limit_bytes: int) -> None:
        self._how, self._limit = how, limit_bytes
        self.group: Path | None = None

    def __enter__(self) -> Limited:
        if self._how.root is None:
            return self
        self.group = self._how.root / f"guardlet-{uuid.uuid4().hex[:8]}"
        self.group.mkdir()
        v1 = self._how.name == CGROUP_V1
        (self.group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(self._limit))
        swap = self.group / ("memory.memsw.limit_in_bytes" if v1 else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(self._limit if v1 else 0))
        return self

    def __exit__(self, *_: object) -> None:
        if self.group is None:
            return
        for _attempt in range(100):  # a process that was killed leaves its group a little later
            for pid in (self.group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self.group.rmdir()
                return
            except OSError:
                time.sleep(0.05)
        raise OSError(f"{self.group}: cannot be removed")

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, timeout_s: float
    ) -> subprocess.CompletedProcess[bytes]:
        """To its end, which may be the kernel's doing: exit status -9. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            list(command),
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            preexec_fn=self._enter,
        )

    @property
    def most_bytes(self) -> int:
        """The most that the group held, page cache included; 0 where that is not known."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            file = self.group / name if self.group else None
            if file is not None and file.exists():
                return int(file.read_text())
        return 0

    def _enter(self) -> None:
        if self.group is None:
            resource.setrlimit(resource.RLIMIT_DATA, (self._limit, self._limit))
        else:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))


def _can_make(root: Path, limit: str) -> bool:
    group = root / f"guardlet-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError:
        return False
    try:
        return (group / limit).exists()
    finally:
        group.rmdir()
