"""Make the committed gRPC stubs (``guard/v1`` from ``proto/``, Envoy's beside their .proto), or check that they are
current.

    python tools/stubs.py           # write them
    python tools/stubs.py --check   # exit 1 and name the files when writing them would change anything

Runs ``python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/guard/v1/*.proto``, and
the same with ``-I .`` for Envoy's.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
#: What others' protos we speak: these keep their packages, and are no part of our contract.
FOREIGN = ROOT / "server" / "ext_proc" / "v3"
STUBS = (ROOT / "guard" / "v1", FOREIGN)


def generate(out: Path) -> list[Path]:
    """Write the stubs under ``out`` and return them, as paths relative to it. Exits when protoc refuses a file."""
    outputs = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    for root, directory in ((PROTO, PROTO), (ROOT, FOREIGN)):
        sources = sorted(str(path) for path in directory.rglob("*.proto"))
        if subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", *outputs, *sources]).returncode != 0:
            raise SystemExit("protoc failed")
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*"))


def stale(fresh: Path, names: list[Path]) -> list[str]:
    """Stubs that differ from those in ``fresh``, are missing, or belong to no .proto file."""
    committed = {path.relative_to(ROOT) for stubs in STUBS for path in stubs.glob("*_pb2*")}
    missing_or_extra = committed ^ set(names)
    changed = {name for name in committed & set(names) if (ROOT / name).read_bytes() != (fresh / name).read_bytes()}
    return sorted(str(name) for name in missing_or_extra | changed)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Make or check the gRPC stubs in guard/v1.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the stubs are not current")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        names = generate(fresh)
        outdated = stale(fresh, names)
        if check:
            for name in outdated:
                print(f"{name} is not current: run python tools/stubs.py", file=sys.stderr)
            return 1 if outdated else 0
        for old in (old for stubs in STUBS for old in stubs.glob("*_pb2*")):
            old.unlink()
        for path in names:
            shutil.copyfile(fresh / path, ROOT / path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
