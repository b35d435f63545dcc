"""``python -m tests.contract.serve_fakes``: a server process with scripted models, for tests of the process itself.

Prints its address when it listens. Settings come from GUARD_* variables; FAKE_STEP_SECONDS is what a model step takes,
FAKE_FAIL makes the models fail to load, FAKE_FAIL_AGAIN every load after the first two. Texts with one of FAULTS make
the model that reads them crash or hang.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from guard.bundle.manifest import Task
from guard.engine.settings import EngineSettings
from server import log
from server.app import serve
from server.registry import Model
from server.settings_sources import load_settings
from server.watchdog import leave

from .fakes import FakeModels, crash


def spin() -> None:
    """Native code that keeps Python's lock for good: no other thread of the process runs any more."""
    re.match(r"(a+)+$", "a" * 64 + "b")


FAULTS = {"#crash#": crash, "#hang#": lambda: time.sleep(3600), "#spin#": spin, "#abort#": os.abort}


def main() -> int:
    """Serves; returns the exit status."""
    log.configure()
    with tempfile.TemporaryDirectory() as directory:
        step_seconds = float(os.environ.get("FAKE_STEP_SECONDS", "0"))
        fakes = FakeModels(Path(directory), step_seconds, "FAKE_FAIL" in os.environ, faults=FAULTS)

        def load(path: Path, task: Task, settings: EngineSettings) -> Model:
            fakes.fail |= "FAKE_FAIL_AGAIN" in os.environ and len(fakes.runners) == 2
            return fakes(path, task, settings)

        return leave(asyncio.run(serve(load_settings({}, os.environ), load)))


if __name__ == "__main__":
    sys.exit(main())
