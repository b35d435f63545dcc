"""Writes the locks: constraints.txt, deploy/requirements.txt and deploy/requirements-build.txt. Run by ``make lock``.

pip's own resolver decides (``pip install --dry-run --report``), from pyproject.toml alone and from whatever index pip
is configured with; only names, versions and hashes are written, so the files install from any index.

constraints.txt holds everything the project, its extras and its tools install. A torch that pip takes from PyPI brings
CUDA packages of its own; those are not listed, its version pins them. The two files in deploy/ are what the image is
made of, with a hash for each platform: what runs, and what builds the project's own wheel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "server,export,eval,structured,reference,bulk,ray,kserve,dev"
HEADER = f"""\
# Exact versions for a repeatable install of guardlet[{EXTRAS}].
# Written by `make lock` (tools/lock.py) from pyproject.toml; do not edit by hand.
# Use: pip install -c constraints.txt -e '.[server,export]'
"""
#: The extras that the image installs.
IMAGE_EXTRAS = ("server", "structured", "otel", "http")
HASHED_HEADER = """\
# {what}, with hashes for Linux on x86-64 and aarch64 and the image's Python.
# Written by `make lock` (tools/lock.py) from pyproject.toml and constraints.txt; do not edit by hand.
# Use: pip install --require-hashes --no-deps -r {file}
"""
#: The image's Python and the platforms its wheels may be for: glibc of Debian 12 or older, newest tag first.
IMAGE_PYTHON = "3.11"
_GLIBC_MINORS = range(36, 16, -1)
MACHINES = ("x86_64", "aarch64")


def resolve() -> dict[str, str]:
    """Name to version of the full closure. A local version (``2.13.0+cpu``) is written without its local part."""
    installed = _report("--ignore-installed", f"{ROOT}[{EXTRAS}]")
    packages = (item["metadata"] for item in installed)
    versions = {package["name"]: package["version"].partition("+")[0] for package in packages}
    del versions["guardlet"]
    return versions


def resolve_hashed(requirements: Sequence[str]) -> dict[str, set[str]]:
    """``name==version`` to the SHA-256 of its wheel on each platform, for the closure of ``requirements``."""
    found: dict[str, set[str]] = defaultdict(set)
    with tempfile.TemporaryDirectory() as target:
        for machine in MACHINES:
            tags = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS] + [f"manylinux2014_{machine}"]
            options = ["--target", target, "--only-binary", ":all:", "--python-version", IMAGE_PYTHON]
            options += ["-c", str(ROOT / "constraints.txt"), *(f"--platform={tag}" for tag in tags)]
            for item in _report(*options, *requirements):
                pinned = f"{item['metadata']['name']}=={item['metadata']['version']}"
                found[pinned].add(item["download_info"]["archive_info"]["hashes"]["sha256"])
    return dict(found)


def requirements_of(extras: Sequence[str]) -> list[str]:
    """What pyproject.toml asks for with ``extras``, those that they name included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted, waiting = list(project["dependencies"]), list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(r"guardlet\[([\w,]+)\]", requirement)
            if own:
                waiting += own[1].split(",")
            else:
                wanted.append(requirement)
    return wanted


def build_requirements() -> list[str]:
    """What builds the project's wheel, from pyproject.toml."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    return [*build["requires"]]


def _report(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--report", "-", *arguments]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    installed: list[dict[str, Any]] = report["install"]
    return installed


def _write_hashed(path: Path, what: str, requirements: Sequence[str]) -> None:
    hashed = resolve_hashed(requirements)
    lines = [
        " \\\n    ".join([pinned, *(f"--hash=sha256:{digest}" for digest in sorted(hashed[pinned]))]) + "\n"
        for pinned in sorted(hashed, key=str.lower)
    ]
    file = path.relative_to(ROOT).as_posix()
    path.write_text(HASHED_HEADER.format(what=what, file=file) + "".join(lines), encoding="utf-8")
    print(f"{file}: {len(lines)} packages")


def main() -> None:
    lines = [f"{name}=={version}\n" for name, version in sorted(resolve().items(), key=lambda item: item[0].lower())]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"constraints.txt: {len(lines)} packages")
    write_image_locks()


def write_image_locks() -> None:
    """The files that the Dockerfile installs from, of the versions in constraints.txt where that names them."""
    extras = ",".join(IMAGE_EXTRAS)
    _write_hashed(ROOT / "deploy/requirements.txt", f"What guardlet[{extras}] needs", requirements_of(IMAGE_EXTRAS))
    _write_hashed(ROOT / "deploy/requirements-build.txt", "What builds guardlet's wheel", build_requirements())


if __name__ == "__main__":
    main()
