"""Memory of a process as the kernel counts it: anonymous pages are its own, file-backed ones can be dropped and read
again, and are shared by processes that map the same file.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.02


@dataclass(frozen=True)
class Memory:
    """Resident MiB."""

    anonymous: float
    file_backed: float

    @property
    def resident(self) -> float:
        """Both."""
        return self.anonymous + self.file_backed


def read(pid: int, proc: Path = Path("/proc")) -> Memory:
    """Of a process now; nothing once it has ended. Shared memory counts as anonymous."""
    try:
        text = (proc / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return Memory(0.0, 0.0)
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Rss"))
    mib = {name: int(value.split()[0]) / 1024 for name, value in fields.items()}
    return Memory(mib.get("RssAnon", 0.0) + mib.get("RssShmem", 0.0), mib.get("RssFile", 0.0))


class Watch:
    """Samples a process until it is told to stop; remembers the most it saw of each kind, and of both at once."""

    def __init__(self, pid: int) -> None:
        self.most_anonymous = self.most_resident = 0.0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Waits for the last sample."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            now = read(self._pid)
            self.most_anonymous = max(self.most_anonymous, now.anonymous)
            self.most_resident = max(self.most_resident, now.resident)
            if self._stop.wait(_SAMPLE_S):
                return
