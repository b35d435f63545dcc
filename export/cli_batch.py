"""``guard export --config FILE``: the options of a batch, and its run."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from export.batch import RunOptions, Terminated, load_batch, plan_batch, run_batch
from guard.cli import EXIT_SOME_FAILED

#: What only a batch has, and what it shares with a single export.
_OWN = ("config", "dry_run", "only", "fail_fast")
_SHARED = ("json", "overwrite", "usage_error", "defaults")


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that belong to ``--config``; call it after all others were added."""
    group = parser.add_argument_group("many exports", "--overwrite then makes anew what is there already")
    group.add_argument("--config", type=Path, metavar="FILE", help="the YAML file that lists them")
    group.add_argument("--dry-run", action="store_true", help="say what would be done, and how much memory it takes")
    group.add_argument("--only", action="append", metavar="NAME", help="only this bundle; repeatable")
    ends = group.add_mutually_exclusive_group()
    ends.add_argument("--fail-fast", action="store_true", help="once an export has failed, start no more")
    ends.add_argument("--keep-going", dest="fail_fast", action="store_false", help="make the others (the default)")
    parser.set_defaults(usage_error=parser.error, defaults=parser.parse_args([]))


def run_export(args: argparse.Namespace, one: Callable[[argparse.Namespace], int]) -> int:
    """Runs the batch of ``--config``, or ``one``; refuses options of the other kind as a wrong command line."""
    given = [name for name, value in vars(args).items() if getattr(args.defaults, name, value) != value]
    if args.config is None:
        wrong = [name for name in given if name in _OWN]
        if wrong:
            args.usage_error(f"{_option(wrong[0])} needs --config")
        if args.source is None or args.out is None:
            args.usage_error("SOURCE and --out are required, or --config")
        return one(args)
    wrong = [name for name in given if name not in (*_OWN, *_SHARED)]
    if wrong:
        args.usage_error(f"{_option(wrong[0])}: with --config, the file says it")
    return _run_batch(args)


def _run_batch(args: argparse.Namespace) -> int:
    """Progress on stderr; the table, or with ``--json`` the report, on stdout."""
    batch = load_batch(args.config)
    options = RunOptions(tuple(args.only or ()), args.fail_fast, args.overwrite)
    signal.signal(signal.SIGTERM, _terminate)
    report = (plan_batch if args.dry_run else run_batch)(batch, options, _quiet if args.json else _say)
    print(json.dumps(report.to_json()) if args.json else report.table())
    return 0 if report.passed else EXIT_SOME_FAILED


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _quiet(line: str) -> None:
    pass


def _option(name: str) -> str:
    return "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
