"""``python -m tests.contract.serve_fakes``: a server process with scripted models, for tests of the process itself.

Prints its address when it listens. Settings come from GUARD_* variables; FAKE_STEP_SECONDS is what a model step takes,
FAKE_FAIL makes the models fail to load, FAKE_DIES ends the guard's engine after so many seconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from pathlib import Path

from guard.bundle.manifest import Task
from guard.engine.settings import EngineSettings
from server import log
from server.app import serve
from server.registry import Model
from server.settings import load_settings

from .fakes import FakeModels


def main() -> int:
    """Serves; returns the exit status."""
    log.configure()
    with tempfile.TemporaryDirectory() as directory:
        fakes = FakeModels(Path(directory), float(os.environ.get("FAKE_STEP_SECONDS", "0")), "FAKE_FAIL" in os.environ)

        def load(path: Path, task: Task, settings: EngineSettings) -> Model:
            model = fakes(path, task, settings)
            if "FAKE_DIES" in os.environ and task == "guard":
                threading.Timer(float(os.environ["FAKE_DIES"]), model.engine.close).start()
            return model

        return asyncio.run(serve(load_settings({}, os.environ), load))


if __name__ == "__main__":
    sys.exit(main())
