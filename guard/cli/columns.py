"""Options that say which column of a file of labelled rows holds what."""

from __future__ import annotations

import argparse

from guard.conversation import Role
from guard.errors import InvalidInputError
from guard.evaluation.rows import Columns


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which column of DATA holds what."""
    group = parser.add_argument_group("columns")
    default = Columns()
    group.add_argument("--text-column", metavar="NAME", help="one message a row, instead of messages")
    group.add_argument("--context-column", metavar="NAME", help="with --text-column: the user message before it")
    group.add_argument(
        "--role",
        choices=("user", "assistant"),
        help="with --text-column: who wrote it (user; after a context: assistant)",
    )
    for name in ("messages", "target", "label", "categories", "lang", "source"):
        group.add_argument(f"--{name}-column", default=name, metavar="NAME", help="(%(default)s)")
    group.add_argument(
        "--unsafe-label",
        action="append",
        default=[],
        metavar="VALUE",
        help=f"means unsafe, as {', '.join(sorted(default.unsafe_labels))} do; repeatable",
    )
    group.add_argument(
        "--safe-label",
        action="append",
        default=[],
        metavar="VALUE",
        help=f"means safe, as {', '.join(sorted(default.safe_labels))} do; repeatable",
    )


def columns_of(args: argparse.Namespace) -> Columns:
    """The parsed column options. Raises InvalidInputError."""
    if args.text_column is None and (args.context_column or args.role):
        raise InvalidInputError("columns", "--context-column and --role go with --text-column")
    role = args.role or ("assistant" if args.context_column else "user")
    return Columns(
        messages=args.messages_column,
        text=args.text_column,
        context=args.context_column,
        role=Role(role),
        target=args.target_column,
        label=args.label_column,
        categories=args.categories_column,
        lang=args.lang_column,
        source=args.source_column,
        unsafe_labels=_without(Columns().unsafe_labels, args.safe_label) | _folded(args.unsafe_label),
        safe_labels=_without(Columns().safe_labels, args.unsafe_label) | _folded(args.safe_label),
    )


def _folded(labels: list[str]) -> frozenset[str]:
    return frozenset(label.strip().casefold() for label in labels)


def _without(defaults: frozenset[str], claimed: list[str]) -> frozenset[str]:
    """A default that the user gave the other meaning (0 may be the unsafe class) loses its own."""
    return defaults - _folded(claimed)
