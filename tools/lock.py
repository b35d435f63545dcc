"""Writes constraints.txt: the exact version of everything the project, its extras and its tools install.

Run by ``make lock``. pip's own resolver decides (``pip install --dry-run --report``), from pyproject.toml alone and
from whatever index pip is configured with; only names and versions are written, so the file installs from any index.
A torch that pip takes from PyPI brings CUDA packages of its own; those are not listed, its version pins them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "server,export,eval,structured,reference,bulk,dev"
HEADER = f"""\
# Exact versions for a repeatable install of guardlet[{EXTRAS}].
# Written by `make lock` (tools/lock.py) from pyproject.toml; do not edit by hand.
# Use: pip install -c constraints.txt -e '.[server,export]'
"""


def resolve() -> dict[str, str]:
    """Name to version of the full closure. A local version (``2.13.0+cpu``) is written without its local part."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report", "-"]
    report = subprocess.run([*command, f"{ROOT}[{EXTRAS}]"], check=True, stdout=subprocess.PIPE, text=True)
    packages = (item["metadata"] for item in json.loads(report.stdout)["install"])
    versions = {package["name"]: package["version"].partition("+")[0] for package in packages}
    del versions["guardlet"]
    return versions


def main() -> None:
    lines = [f"{name}=={version}\n" for name, version in sorted(resolve().items(), key=lambda item: item[0].lower())]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"constraints.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
