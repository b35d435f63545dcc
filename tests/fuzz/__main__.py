"""``python -m tests.fuzz --minutes N``: the fuzz targets for longer than a test may take."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.fuzz.targets import Findings, Fuzzer

#: Each target has as much time as any other.
_TURN_S = 0.5


def main() -> int:
    """Prints what was tried and what was found; exit status 1 when anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--target", help="one target only")
    args = parser.parse_args()
    found, next_seed = Findings(), defaultdict[str, int](lambda: args.first_seed)
    with tempfile.TemporaryDirectory() as directory:
        fuzzer = Fuzzer(Path(directory))
        until = time.monotonic() + args.minutes * 60
        while time.monotonic() < until:
            for name in [args.target] if args.target else fuzzer.targets:
                turn = time.monotonic() + _TURN_S
                while time.monotonic() < turn:
                    fuzzer.one(name, next_seed[name], found)
                    next_seed[name] += 1
        fuzzer.close()
    print(f"{found.inputs} inputs, seeds from {args.first_seed}")
    for name, ends in found.ends.items():
        print(f"{name}: {ends.total()}: {dict(ends.most_common())}")
    print("\n".join(found.findings) or "no findings")
    return 1 if found.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
