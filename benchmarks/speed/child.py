"""The parent's end of a worker: starts it, asks it, ends it."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.speed import memory
from benchmarks.speed.engine import Classify, Decode, Prefill, Unsupported

_ROOT = Path(__file__).parents[2]
_LOAD_S, _WORK_S = 600.0, 300.0
Work = Classify | Prefill | Decode


class EngineFailedError(Exception):
    """The engine raised, died or hung; the message says what is known."""


class Child:
    """One engine in a process of its own. ``python`` runs it; ``before`` is put in front of the command."""

    def __init__(self, python: Path, log: Path, before: Sequence[str] = ()) -> None:
        command = [*before, str(python), "-m", "benchmarks.speed.worker"]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": "ignore"}
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._process.pid

    def load(self, module: str, task: str, weights: Path, threads: int) -> float:
        """Seconds; raises as ``run``."""
        return self._ask(
            {"op": "load", "module": module, "task": task, "weights": str(weights), "threads": threads}, _LOAD_S
        )

    def run(self, work: Work) -> float:
        """Seconds of what the engine timed. Raises Unsupported, or EngineFailedError."""
        return self._ask({"op": type(work).__name__.lower(), **asdict(work)}, _WORK_S)

    def memory(self) -> memory.Memory:
        """Resident now."""
        return memory.read(self.pid)

    def close(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, order: dict[str, Any], timeout_s: float) -> float:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise EngineFailedError("it has died") from None
        if not select.select([stdout], [], [], timeout_s)[0]:
            raise EngineFailedError(f"no answer in {timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise EngineFailedError(f"it died: exit status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        if "error" in answer:
            raise EngineFailedError(answer["error"])
        return float(answer["seconds"])
