"""Check a file of policies, and show what each of them comes to."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from guard.bundle import open_bundle
from guard.cli.output import add_json_option
from guard.errors import InvalidInputError
from guard.policies import PolicyBook
from guard.policy import Policy
from guard.prompt import judged_categories
from server.policies import check_policies, load_policies


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the file of guard serve --policies")
    parser.add_argument("--guard", type=Path, metavar="DIR", help="also check the categories against this bundle's")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the policies; a file that does not hold raises SettingsError."""
    book = load_policies(args.file)
    if args.guard is not None:
        guard_format = open_bundle(args.guard).manifest.guard
        if guard_format is None:
            raise InvalidInputError("guard", "is no bundle of a guard model")
        check_policies(book, partial(judged_categories, guard_format))
    print(json.dumps(_summary(book)) if args.json else _describe(book))
    return 0


def _summary(book: PolicyBook) -> dict[str, Any]:
    return {
        "default": book.default,
        "callers": dict(book.callers),
        "policies": {name: _fields(policy) for name, policy in sorted(book.policies.items())},
    }


def _fields(policy: Policy) -> dict[str, Any]:
    return {
        "digest": policy.digest,
        "threshold": policy.threshold,
        "category_thresholds": dict(policy.category_thresholds),
        "excluded_categories": sorted(policy.excluded_categories),
        "custom_categories": [category.code for category in policy.custom_categories],
        "action": policy.action.value,
        "deny_entries": len(policy.deny),
        "allow_entries": len(policy.allow),
    }


def _describe(book: PolicyBook) -> str:
    lines = []
    for name, policy in sorted(book.policies.items()):
        lines.append(f"{name}{' (default)' if name == book.default else ''}   {policy.digest[:16]}")
        lines += [
            f"  {field:20} {_text(value)}" for field, value in _fields(policy).items() if value and field != "digest"
        ]
    return "\n".join([*lines, *(f"caller {caller}: {name}" for caller, name in book.callers.items())])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{code} {threshold:g}" for code, threshold in sorted(value.items()))
    return ", ".join(value) if isinstance(value, list) else str(value)
