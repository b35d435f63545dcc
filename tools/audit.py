"""Asks pip-audit whether anything in the image's lock is known to be vulnerable; says so where nobody can be asked.

Exit status 0: nothing is known, or nothing could be checked, which is printed; 1: something is vulnerable.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 300.0
_SKIPPED = "==> audit: SKIPPED, the vulnerability service cannot be reached; nothing was checked"


def audit(command: list[str]) -> int:
    """Runs pip-audit as ``command`` on the lock and returns the exit status."""
    lock = ROOT / "deploy" / "requirements.txt"
    options = ["--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json", f"--requirement={lock}"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=_TIMEOUT_S)
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        print(_SKIPPED)
        return 0
    # Of a package that an index does not describe, pip-audit says "skipped" and then that no vulnerability is known.
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        print(_SKIPPED)
        return 0
    found = [(package, known) for package in packages for known in package.get("vulns", [])]
    for package, known in found:
        fixed = ", ".join(known["fix_versions"]) or "nothing yet"
        print(f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    print(f"==> audit: {len(packages) - len(skipped)} packages checked, {len(found)} vulnerabilities known")
    if skipped:
        print(f"    not checked: {', '.join(skipped)}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(audit(sys.argv[1:]))
