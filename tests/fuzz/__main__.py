"""``python -m tests.fuzz --minutes N``: the fuzz targets for longer than a test may take."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.fuzz.targets import Findings, Fuzzer


def main() -> int:
    """Prints what was tried and what was found; exit status 1 when anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--target", help="one target only")
    args = parser.parse_args()
    found, seed = Findings(), args.first_seed
    with tempfile.TemporaryDirectory() as directory:
        fuzzer = Fuzzer(Path(directory))
        until = time.monotonic() + args.minutes * 60
        while time.monotonic() < until:
            for name in [args.target] if args.target else fuzzer.targets:
                fuzzer.one(name, seed, found)
            seed += 1
        fuzzer.close()
    print(f"{found.inputs} inputs, seeds {args.first_seed} to {seed - 1}: {dict(found.ends.most_common())}")
    print("\n".join(found.findings) or "no findings")
    return 1 if found.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
