"""Judge a file of rows, and write a row for each.

IN is .jsonl, .csv, .tsv (each also .gz) or .parquet; OUT is .jsonl, .csv or .parquet. A row has a column of messages (a
list of {"role", "content"}; the last one is judged), or a text, or a prompt, a response or both. The output has the
input's order and count: a row that cannot be judged has an error instead of a verdict, and stands in the file of errors
too, with its number, field and limit. No text is written. A run that was killed goes on where it stopped when the
command is given again; until it ends, OUT.bulk holds what was judged.

exit status: 0 every row has a verdict (which one, OUT says), 4 done but for the rows in the file of errors, 1 failed,
2 wrong options, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from guard.bulk.judge import LocalGuard
from guard.bulk.local import InProcess, Processes
from guard.bulk.run import Backend, BulkRequest, Summary, moderate
from guard.bulk.source import Source
from guard.bundle import open_bundle
from guard.cli import EXIT_SOME_FAILED
from guard.cli.output import add_json_option, to_json
from guard.conversation import Role
from guard.engine.cpus import available_cpus
from guard.errors import InvalidInputError, UnsupportedError
from guard.evaluation.progress import RateLine, duration
from guard.evaluation.rows import Columns
from guard.policies import NamedPolicy, PolicyBook
from guard.policy import PolicyChanges


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("input", type=Path, metavar="IN", help="the rows")
    parser.add_argument("output", type=Path, metavar="OUT", help="a row for each of them")
    parser.add_argument("--guard", type=Path, metavar="DIR", required=True, help="judge with this bundle")
    parser.add_argument("--errors", type=Path, metavar="FILE", help="rows without a verdict (OUT.errors.jsonl)")
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), help="of OUT, when its name does not say")
    parser.add_argument("--restart", action="store_true", help="judge all again, and replace OUT")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    _add_columns(parser)
    _add_policy(parser)
    group = parser.add_argument_group("speed")
    group.add_argument("--processes", type=int, default=1, metavar="N", help="with a guard each (%(default)s)")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="of each process (the CPUs, shared out)")
    group.add_argument("--batch", type=int, default=16, metavar="N", help="rows given out at a time (%(default)s)")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this machine's processes, or Ray's actors"
    )
    group.add_argument("--ray-address", metavar="ADDRESS", help="with --engine ray: a cluster (a new one, here)")
    add_json_option(parser)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns", "each also as --...-field")
    what = {
        "text": "one message a row",
        "prompt": "a user's message; with --response-column, what the response answers",
        "response": "an assistant's message: it is judged",
        "id": "copied to OUT",
    }
    for name, text in what.items():
        group.add_argument(f"--{name}-column", f"--{name}-field", metavar="NAME", help=text)
    group.add_argument("--role", choices=("user", "assistant"), help="with --text-column: who wrote it (user)")
    for name in ("messages", "target"):
        group.add_argument(f"--{name}-column", f"--{name}-field", default=name, metavar="NAME", help="(%(default)s)")


def _add_policy(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("policy")
    group.add_argument("--policies", type=Path, metavar="FILE", help="the file of guard serve --policies")
    group.add_argument("--policy", default="", metavar="NAME", help="one of them; else its default")
    group.add_argument("--threshold", type=float, metavar="P", help="flag at this score instead of the policy's")
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="CODE",
        help="do not judge this category; repeatable; instead of those the policy excludes",
    )
    group.add_argument("--exact", action="store_true", help="let the model write all categories out; slower")


def run(args: argparse.Namespace) -> int:
    """Judges, writes the results, and prints what they come to."""
    source = Source(args.input, columns_of(args), args.id_column, args.limit, batch=args.batch)
    request = BulkRequest(source, args.output, args.errors, args.format, args.restart)
    summary = moderate(request, _backend(args), RateLine(sys.stderr))
    print(to_json(summary) if args.json else describe(summary))
    return EXIT_SOME_FAILED if summary.errors else 0


def columns_of(args: argparse.Namespace) -> Columns:
    """The parsed column options. Raises InvalidInputError."""
    if args.text_column and (args.prompt_column or args.response_column):
        raise InvalidInputError("columns", "either --text-column, or --prompt-column and --response-column")
    if args.role and not args.text_column:
        raise InvalidInputError("columns", "--role goes with --text-column")
    role = Role(args.role) if args.role else Role.ASSISTANT if args.response_column else Role.USER
    return Columns(
        messages=args.messages_column,
        text=args.text_column or args.response_column or args.prompt_column,
        context=args.prompt_column if args.response_column else None,
        role=role,
        target=args.target_column,
    )


def _backend(args: argparse.Namespace) -> Backend:
    for name in ("processes", "threads"):
        if getattr(args, name) < (name == "processes"):
            raise InvalidInputError(name, "expected at least 1")
    if args.ray_address and args.engine != "ray":
        raise InvalidInputError("--ray-address", "goes with --engine ray")
    threads = args.threads or max(1, available_cpus() // args.processes)
    guard = LocalGuard(args.guard.absolute(), _policy(args), "exact" if args.exact else "one_pass", threads)
    if args.processes > 1 and open_bundle(args.guard).manifest.packed is None:
        hint = "guard pack makes a bundle whose weights they share"
        print(f"guard bulk: each of the {args.processes} processes has its own weights; {hint}", file=sys.stderr)
    if args.engine == "ray":
        return _ray(guard, args.processes, args.ray_address)
    return InProcess(guard) if args.processes == 1 else Processes(guard, args.processes)


def _ray(guard: LocalGuard, actors: int, address: str | None) -> Backend:
    try:
        from guard.bulk.ray_data import RayActors
    except ModuleNotFoundError as error:
        needs = f"--engine ray needs the Python package {error.name}; pip install 'guardlet[bulk]'"
        raise UnsupportedError(needs) from None
    return RayActors(guard, actors, address)


def _policy(args: argparse.Namespace) -> NamedPolicy:
    book = PolicyBook()
    if args.policies is not None:
        try:  # by name, as commands are: the library itself reads no YAML
            book = importlib.import_module("server.policies").load_policies(args.policies)
        except ModuleNotFoundError as error:
            needs = f"--policies needs the Python package {error.name}; pip install 'guardlet[server]'"
            raise UnsupportedError(needs) from None
    named = book.named(args.policy)
    changes = PolicyChanges(threshold=args.threshold, excluded_categories=frozenset(args.exclude) or None)
    return NamedPolicy(named.name, changes.apply(named.policy))


def describe(summary: Summary) -> str:
    """The counts as lines."""
    judged, without = summary.rows - summary.resumed, sum(summary.errors.values())
    lines = [
        f"{summary.rows} rows: {summary.safe} safe, {summary.unsafe} unsafe, {without} without a verdict;"
        f" {judged} judged in {duration(summary.seconds)}",
        f"  {summary.out}",
    ]
    if without:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary.errors.items())
        lines.append(f"  {summary.errors_file}: {reasons}")
    return "\n".join(lines)
