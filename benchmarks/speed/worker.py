"""The child process of one engine: a line of JSON in, a line of JSON out. Times are taken here, beside the engine.

Standard output is the protocol's alone: what engines print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill, Unsupported, load

_WORK = {"classify": Classify, "prefill": Prefill, "decode": Decode}


def main() -> None:
    """Serves until the input ends or says ``exit``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        operation = order.pop("op")
        if operation == "exit":
            return
        try:
            if operation == "load":
                began = time.perf_counter()
                engine = load(**order)
                answer: dict[str, Any] = {"seconds": time.perf_counter() - began}
            elif engine is None:
                answer = {"error": "nothing is loaded"}
            else:
                answer = {"seconds": getattr(engine, operation)(_WORK[operation](**order))}
        except Unsupported as reason:
            answer = {"unsupported": str(reason)}
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the run goes on without it
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
