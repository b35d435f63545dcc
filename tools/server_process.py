"""A real ``guard serve`` as a child process on a free port: for the demo, the benchmarks and the end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_START_S = 120.0
_POLL_S = 0.05


class ServerProcess:
    """Starts the server on entry and returns once it serves; leaving the block stops it.

    The operating system picks the port, and the server's own log says which. ``flags`` are options of ``guard serve``,
    ``environment`` adds variables.
    """

    def __init__(self, flags: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._flags = flags
        self._environment = {"GUARD_DRAIN_DELAY_S": "0", **(environment or {})}
        self._directory = tempfile.TemporaryDirectory(prefix="guard-serve-")
        self._log = Path(self._directory.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.exit_status: int | None = None

    def __enter__(self) -> ServerProcess:
        command = [sys.executable, "-m", "guard.cli", "serve", "--address", "127.0.0.1:0", *self._flags]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, **self._environment}
            )
        try:
            self.address = str(self._wait_for("listening")["address"])
            self._wait_for("ready")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        """The process id; raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process.pid

    def events(self) -> list[dict[str, object]]:
        """Its log so far: one JSON object a line."""
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Signal it and wait; returns its exit status. Kills it after ``timeout_s`` seconds."""
        if self._process is None:
            raise RuntimeError("the server is not started")
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self.exit_status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.exit_status = self._process.wait()
        return self.exit_status

    def _wait_for(self, name: str) -> dict[str, object]:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            ended = self._process is not None and self._process.poll() is not None
            for event in self.events():
                if event["event"] == name:
                    return event
            if ended:
                break
            time.sleep(_POLL_S)
        raise RuntimeError(
            f"the server did not say {name!r}:\n{self._log.read_text(encoding='utf-8', errors='replace')}"
        )
