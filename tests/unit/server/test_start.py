from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from server.settings import Settings
from server.start import digest

_PROGRAM = """
import ctypes, resource, sys
from pathlib import Path
from server.settings import Settings
from server.start import begin
begin(Settings(guard=Path("g")))
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) if sys.platform == "linux" else 0
print(resource.getrlimit(resource.RLIMIT_CORE), dumpable)
raise ValueError("secret")
"""


def test_a_process_begins_with_a_line_and_leaves_no_core() -> None:
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout == "(0, 0) 0\n"
    starting, uncaught = map(json.loads, run.stderr.splitlines())
    assert (starting["event"], starting["settings"]) == ("starting", digest(Settings(guard=Path("g"))))
    assert starting["version"]
    assert (uncaught["event"], uncaught["exception"]) == ("uncaught", "ValueError")
    assert "secret" not in run.stderr


def test_equal_settings_have_equal_digests() -> None:
    one = Settings(guard=Path("g"), threads=1)
    assert digest(one) == digest(Settings(guard=Path("g"), threads=1))
    assert digest(one) != digest(Settings(guard=Path("g"), threads=2))
    assert digest(one) != digest(Settings(guard=Path("h"), threads=1))
