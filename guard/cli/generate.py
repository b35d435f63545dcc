"""Let the instruct model of a running server answer; the text appears while it is being written."""

from __future__ import annotations

import argparse
from pathlib import Path

from guard.cli.connection import add_connection_options, connect
from guard.cli.messages import read_context, read_text
from guard.cli.output import add_json_option, to_json
from guard.client import GenerationOptions
from guard.conversation import Message, Role


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads standard input")
    parser.add_argument("--context", type=Path, metavar="FILE", help="earlier messages: a JSON array or JSON lines")
    parser.add_argument("--system", metavar="TEXT", help="a system message, put first")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="write at most so many tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token each time")
    parser.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling, 0 to 1")
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K most likely tokens; 0 is no limit")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")
    parser.add_argument("--model", default="", metavar="NAME", help="which instruct model, when the server has several")
    add_connection_options(parser, timeout_s=300)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Streams the answer to stdout; with ``--json``, prints it whole."""
    system = [] if args.system is None else [Message(Role.SYSTEM, args.system)]
    messages = [*system, *read_context(args.context), Message(Role.USER, read_text(args.prompt))]
    options = GenerationOptions(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        stop=tuple(args.stop),
    )
    with connect(args) as client:
        stream = client.stream_generate(messages, options, model=args.model)
        for delta in stream:
            if not args.json:
                print(delta.text, end="", flush=True)
        result = stream.result()
    print(to_json(result) if args.json else "")
    return 0
