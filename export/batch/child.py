"""One export in a process of its own: the command that a person would type, watched from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from export.pipeline import ExportRequest

#: A process's most memory so far, in /proc/PID/status.
_PEAK = "VmHWM:"
#: How many processes the kernel has killed for memory: on the machine, and in the container (cgroup v2).
_KILLS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))


@dataclass(frozen=True)
class Ending:
    """How an export ended. ``error``: None where it did what it should. ``peak_bytes``: resident, as far as seen."""

    error: str | None
    seconds: float
    peak_bytes: int | None


class Child:
    """A running export. It inherits ``lock``, a descriptor, so that the output stays locked if it alone survives."""

    def __init__(self, request: ExportRequest, overwrite: bool, lock: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._kills = memory_kills()
        self._began = time.monotonic()
        self._peak: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "guard.cli", *export_command(request, overwrite)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(lock,),
            preexec_fn=_hear_interrupts,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def poll(self) -> Ending | None:
        """None while it runs. Call it often: the memory is only seen while the process lives."""
        self._peak = peak_bytes(self.pid) or self._peak
        status = self._process.poll()
        if status is None:
            return None
        seconds = time.monotonic() - self._began
        with self._errors:
            self._errors.seek(0)
            error = None if status == 0 else self._reason(status, self._errors.read(1 << 16).decode(errors="replace"))
        return Ending(error, seconds, self._peak)

    def stop(self, ask: bool, wait_s: float) -> None:
        """End it: it may tidy up for ``wait_s``. ``ask`` False: it was told already, as by Ctrl-C in a terminal."""
        if ask and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _reason(self, status: int, errors: str) -> str:
        if status >= 0:
            return _message(errors) or f"ended with status {status}"
        name = signal.Signals(-status).name
        if status == -signal.SIGKILL and memory_kills() > self._kills:
            return f"killed for memory by the system ({name}), {self._seen()}"
        return f"killed by {name}, {self._seen()}"

    def _seen(self) -> str:
        return "its memory not seen" if self._peak is None else f"last seen with {self._peak / (1 << 20):.0f} MiB"


def _hear_interrupts() -> None:
    """What nohup or a script's background starts ignores SIGINT, and so would its children: ``stop`` asks by it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def export_command(request: ExportRequest, overwrite: bool) -> list[str]:
    """The words after ``guard`` that export ``request`` alone."""
    words = ["export", request.source, "--out", str(request.out), "--task", request.task]
    words += ["--quantization", request.quantization, "--exporter", request.exporter, "--json"]
    values = {
        "--revision": request.revision,
        "--adapter": request.adapter,
        "--name": request.name,
        "--max-kl": request.max_kl,
        "--sign": request.sign,
    }
    for option, value in values.items():
        words += [] if value is None else [option, str(value)]
    flags = {
        "--no-parity": not request.parity,
        "--no-calibration": not request.calibrate,
        "--packed": request.packed,
        "--overwrite": overwrite,
    }
    return words + [flag for flag, wanted in flags.items() if wanted]


def peak_bytes(pid: int) -> int | None:
    """The most resident memory that the process ever had; None where the system does not tell."""
    return _field(Path(f"/proc/{pid}/status"), _PEAK, 1024)


def memory_kills() -> int:
    """A count that rises when the kernel kills a process for memory; whose, it does not say."""
    return sum(_field(path, "oom_kill", 1) or 0 for path in _KILLS)


def _field(path: Path, name: str, unit: int) -> int | None:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.split()[:1] == [name]), None)


def _message(errors: str) -> str:
    """What the command said of its failure: its JSON, or the last line of anything else."""
    line = (errors.strip().splitlines() or [""])[-1]
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(line)["error"]["message"])
    return line[:500]
