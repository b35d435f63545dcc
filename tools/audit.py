"""Asks pip-audit whether anything in the image's lock is known to be vulnerable; says so where nobody can be asked.

Exit status 0: every package was checked and nothing is known. 1: something is vulnerable. 3: nothing is known of what
was checked, but some or all was not, and why is printed; ``make audit`` lets that pass unless AUDIT_REQUIRED is set.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLEAN, VULNERABLE, NOT_CHECKED = 0, 1, 3
_TIMEOUT_S = 300.0


def audit(command: list[str]) -> int:
    """Runs pip-audit as ``command`` on the lock and returns the exit status."""
    lock = ROOT / "deploy" / "requirements.txt"
    options = ["--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json", f"--requirement={lock}"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return _skipped(f"the vulnerability service gave no answer in {_TIMEOUT_S:.0f} s")
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except json.JSONDecodeError:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return _skipped(f"pip-audit ended with status {done.returncode}: {lines[-1]}")
    return _report(packages)


def _report(packages: list[dict[str, Any]]) -> int:
    # Of a package that an index does not describe, pip-audit says "skipped" and then that no vulnerability is known.
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        reason = skipped[0]["skip_reason"] if skipped else "the lock names no package"
        return _skipped(f"pip-audit checked none of {len(packages)} packages, the first because: {reason}")
    found = [(package, known) for package in packages for known in package.get("vulns", [])]
    for package, known in found:
        fixed = ", ".join(known["fix_versions"]) or "nothing yet"
        print(f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    print(f"==> audit: {len(packages) - len(skipped)} packages checked, {len(found)} vulnerabilities known")
    if skipped:
        print(f"    not checked: {', '.join(package['name'] for package in skipped)}")
    if found:
        return VULNERABLE
    return NOT_CHECKED if skipped else CLEAN


def _skipped(reason: str) -> int:
    print(f"==> audit: SKIPPED, nothing was checked: {reason}")
    return NOT_CHECKED


if __name__ == "__main__":
    raise SystemExit(audit(sys.argv[1:]))
