"""A Python for each peer: its own virtual environment, because their installs clash."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

_REQUIREMENTS = Path(__file__).parent / "peers" / "requirements"
#: llama.cpp is built for the instructions of this machine; the header mends what some compilers make of AMX.
_BUILD = {
    "CMAKE_ARGS": f"-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS=-include{_REQUIREMENTS / 'llama-cpp.h'}",
    "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
}


class UnavailableError(Exception):
    """A peer cannot take part; the message says why."""


def python_for(name: str, root: Path) -> Path:
    """The interpreter of the environment ``name``, made under ``root`` from its pinned requirements if need be.

    Our own is the one that runs this; it also serves for a peer if it has exactly what that peer's requirements pin.
    Raises UnavailableError when it cannot be made; a later call tries again.
    """
    if not name:
        return Path(sys.executable)
    requirements = _REQUIREMENTS / f"{name}.txt"
    text = requirements.read_text(encoding="utf-8")
    if has(pins(text)):
        return Path(sys.executable)
    directory = root / name
    python, stamp = directory / "bin" / "python", directory / "installed"
    digest = hashlib.sha256(text.encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == digest:
        return python
    print(f"==> {name}: installing it into {directory} (minutes)", file=sys.stderr, flush=True)
    venv.create(directory, clear=True, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", str(requirements)]
    done = subprocess.run(command, env={**os.environ, **_BUILD}, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"its install failed: {_last_line(done.stderr)}")
    stamp.write_text(digest, encoding="ascii")
    return python


def pins(text: str) -> dict[str, str]:
    """Package to version of lines ``package==version``."""
    return dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE))


def has(versions: dict[str, str]) -> bool:
    """Whether this interpreter has them all; local parts of versions (``+cpu``) do not count."""
    for package, version in versions.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            return False
        if found.partition("+")[0] != version:
            return False
    return True


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
