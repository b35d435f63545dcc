from __future__ import annotations

import subprocess
import sys

from tests.unit.guard.engine.resident import linux_only

#: Outputs of a graph's nodes come and go: how many fresh pages do they need once the heap is warm?
FAULTS = """
import resource
import numpy as np
from guard.engine.memory import give_back, share_one_heap
from tests.unit.guard.engine.resident import resident_bytes

share_one_heap()

def layers(count):
    for _ in range(count):
        hidden = np.ones(150_000, np.float32)
        gate = np.ones(800_000, np.float32)
        gate[:150_000] += hidden

layers(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers(20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
warm = resident_bytes()
give_back()
print(faults, warm - resident_bytes())
"""


@linux_only
def test_one_heap_reuses_the_pages_of_activations_and_can_give_them_back() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    faults, returned = map(int, done.stdout.split())
    assert faults < 200  # 18,000 when each block is fresh
    assert returned > 2 << 20
