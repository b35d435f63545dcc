from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

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

# Each thread fills 48 MiB with blocks of 64 KiB and frees them all while the others still hold theirs. Freeing one
# block of 24 MiB first makes glibc, left alone, keep as much as 48 MiB at the free end of each of its heaps.
_THREADS = """
import os, threading
from pathlib import Path
import numpy as np
from guard.engine.memory import give_back
from server.settings import Settings
from server.start import begin

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def work():
    blocks = [np.ones(1 << 14, np.float32) for _ in range(48 << 4)]
    full.wait()
    measured.wait()
    del blocks
    freed.wait()
    done.wait()

begin(Settings(guard=Path("g")))
np.ones(6 << 20, np.float32)
before = resident()
full, measured, freed, done = (threading.Barrier(5) for _ in range(4))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
full.wait()
most = resident()
measured.wait()
freed.wait()
give_back()
print(before, most, resident())
done.wait()
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no heaps of this kind")
def test_what_other_threads_freed_goes_back() -> None:
    """With a heap for each thread, 92 MiB of the 192 stay resident."""
    run = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, text=True, check=True)
    before, most, after = map(int, run.stdout.split())
    assert most > before + 150
    assert after < before + 20


def test_equal_settings_have_equal_digests() -> None:
    one = Settings(guard=Path("g"), threads=1)
    assert digest(one) == digest(Settings(guard=Path("g"), threads=1))
    assert digest(one) != digest(Settings(guard=Path("g"), threads=2))
    assert digest(one) != digest(Settings(guard=Path("h"), threads=1))
