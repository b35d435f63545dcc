"""API keys of callers: ``guard keys new NAME`` makes one, ``guard keys check FILE`` checks the file of callers.

A new key is printed once, on standard output, and kept nowhere. The file has its hash; the line for it goes to standard
error, so that a pipe into a secret store gets the key alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from guard.cli.output import add_json_option
from guard.policies import check_name
from server.auth.caller import Caller
from server.auth.file import Callers, load_callers
from server.auth.keys import key_hash, new_key
from server.policies import load_policies


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="new|check")
    new = commands.add_parser("new", help="make a key for a caller")
    new.add_argument("name", metavar="NAME", help="the caller's name in the file")
    add_json_option(new)
    check = commands.add_parser("check", help="check a file of callers, and show what each may do")
    check.add_argument("file", type=Path, metavar="FILE", help="the file of guard serve --callers")
    check.add_argument("--policies", type=Path, metavar="FILE", help="the file of guard serve --policies")
    add_json_option(check)


def run(args: argparse.Namespace) -> int:
    """Prints a key, or the callers; a file that does not hold raises SettingsError."""
    if args.action == "new":
        _new(args.name, args.json)
        return 0
    callers = load_callers(args.file, load_policies(args.policies).policies)
    print(json.dumps(_summary(callers)) if args.json else _describe(callers))
    return 0


def _new(name: str, as_json: bool) -> None:
    check_name("name", name)
    key = new_key()
    if as_json:
        print(json.dumps({"name": name, "key": key, "hash": key_hash(key)}))
        return
    print(f"# for the file of callers, below keys of {name}:\n      - {key_hash(key)}", file=sys.stderr)
    print(key)


def _summary(callers: Callers) -> dict[str, Any]:
    return {
        "callers": {name: _fields(callers, caller) for name, caller in sorted(callers.callers.items())},
        "oidc": None if callers.oidc is None else vars(callers.oidc),
    }


def _fields(callers: Callers, caller: Caller) -> dict[str, Any]:
    return {
        "keys": sum(owner == caller for owner in callers.keys.values()),
        "certificates": [name for name, owner in callers.certificates.items() if owner == caller],
        "subjects": [name for name, owner in callers.subjects.items() if owner == caller],
        "policy": caller.policy,
        "admin": caller.admin,
        "services": sorted(caller.services),
        "quota": {name: limit for name, limit in vars(caller.quota).items() if limit is not None},
    }


def _describe(callers: Callers) -> str:
    lines = []
    for name, caller in sorted(callers.callers.items()):
        lines.append(f"{name}{' (admin)' if caller.admin else ''}")
        lines += [f"  {field:13} {_text(value)}" for field, value in _fields(callers, caller).items() if value]
    if callers.oidc is not None:
        lines.append(f"tokens of {callers.oidc.issuer} for {callers.oidc.audience}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {limit:g}" for name, limit in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
