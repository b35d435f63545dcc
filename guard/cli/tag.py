"""Let the instruct model of a running server choose one of several labels for a text, in one pass."""

from __future__ import annotations

import argparse
from pathlib import Path

from guard.cli.connection import add_connection_options, connect
from guard.cli.messages import read_context, read_text
from guard.cli.output import add_json_option, milliseconds, to_json
from guard.client import Label, TagResult
from guard.conversation import Message, Role


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("text", metavar="TEXT", help="the text to label; - reads standard input")
    parser.add_argument(
        "--label",
        action="append",
        required=True,
        metavar="NAME[=DESCRIPTION]",
        help="a label, and what belongs to it; repeat the option, at least twice",
    )
    parser.add_argument("--context", type=Path, metavar="FILE", help="earlier messages: a JSON array or JSON lines")
    parser.add_argument("--instruction", default="", metavar="TEXT", help="what the labels are about")
    parser.add_argument("--uncalibrated", action="store_true", help="leave in what the model prefers before any text")
    parser.add_argument("--model", default="", metavar="NAME", help="which instruct model, when the server has several")
    add_connection_options(parser, timeout_s=60)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the labels, the most likely one first."""
    labels = [Label(name, description) for name, _, description in (text.partition("=") for text in args.label)]
    with connect(args) as client:
        result = client.tag(
            [*read_context(args.context), Message(Role.USER, read_text(args.text))],
            labels,
            instruction=args.instruction,
            calibrated=not args.uncalibrated,
            model=args.model,
        )
    print(to_json(result) if args.json else _describe(result))
    return 0


def _describe(result: TagResult) -> str:
    tokens, time = result.usage.prompt_tokens, milliseconds(result.timings.total_s)
    lines = [f"{result.label}   {result.model}, {tokens} tokens, {time}"]
    return "\n".join([*lines, *(f"  {score.probability:.3f}  {score.name}" for score in result.scores)])
