"""Judge a prompt or a response with a running server.

With --stream, the text comes on standard input while it is being written, and goes to standard output as soon as it was
judged. Where the rest is unsafe the output ends, and standard error says why.

exit status: 0 safe, 3 unsafe, 1 no verdict (the reason is on stderr), 2 wrong options. Only 0 means safe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from guard.cascade import Screening
from guard.cli.connection import add_connection_options, connect
from guard.cli.messages import read_context, read_pieces, read_text
from guard.cli.output import add_json_option, milliseconds, to_json
from guard.client import Classification, StreamOptions, UnsafeTextError
from guard.conversation import Message, Role, Target
from guard.errors import InvalidInputError
from guard.normalize import ViewKind
from guard.policy import PolicyChanges
from guard.verdict import Action, DecidedBy, Verdict

EXIT_UNSAFE = 3
_LISTS = {DecidedBy.DENY_LIST: "deny list", DecidedBy.ALLOW_LIST: "allow list"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("text", nargs="?", metavar="TEXT", help="the message to judge; - reads standard input")
    source.add_argument("--stream", action="store_true", help="pass standard input on as it is judged")
    every = parser.add_mutually_exclusive_group()
    every.add_argument("--every", type=int, metavar="N", help="with --stream: judge every N tokens (the server's: 64)")
    every.add_argument("--sentences", action="store_true", help="with --stream: judge at the ends of sentences")
    parser.add_argument(
        "--within", type=float, metavar="S", help="with --stream: judge what has waited S seconds, wherever it ends"
    )
    parser.add_argument(
        "--role",
        choices=("user", "assistant"),
        default="user",
        help="who wrote it: a prompt or a response (%(default)s)",
    )
    parser.add_argument("--context", type=Path, metavar="FILE", help="earlier messages: a JSON array or JSON lines")
    parser.add_argument("--policy", default="", metavar="NAME", help="one of the server's policies; else its default")
    parser.add_argument("--threshold", type=float, metavar="P", help="flag at this score instead of the policy's")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="CODE",
        help="do not judge this category; repeatable; instead of those the policy excludes",
    )
    parser.add_argument("--exact", action="store_true", help="let the model write all categories out; slower")
    parser.add_argument("--model", default="", metavar="NAME", help="which guard model, when the server has several")
    add_connection_options(parser, timeout_s=60)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Judges, prints, and returns the exit status."""
    policy = PolicyChanges(threshold=args.threshold, excluded_categories=frozenset(args.exclude) or None)
    result = _stream(args, policy) if args.stream else _classify(args, policy)
    return EXIT_UNSAFE if result.verdict is Verdict.UNSAFE else 0


def _classify(args: argparse.Namespace, policy: PolicyChanges) -> Classification:
    if args.every is not None or args.sentences or args.within is not None:
        raise InvalidInputError("--every, --sentences, --within", "only with --stream")
    messages = [*read_context(args.context), Message(Role(args.role), read_text(args.text))]
    with connect(args) as client:
        result = client.classify(messages, policy=policy, policy_name=args.policy, exact=args.exact, model=args.model)
    print(to_json(result) if args.json else _describe(result))
    return result


def _stream(args: argparse.Namespace, policy: PolicyChanges) -> Classification:
    """Prints what is released; with ``--json``, the judgement alone."""
    if args.exact:
        raise InvalidInputError("--exact", "a text that is being written is judged in one pass a check")
    with connect(args) as client:
        stream = client.stream_classify(
            read_context(args.context),
            read_pieces(),
            target=Target.PROMPT if args.role == "user" else Target.RESPONSE,
            policy=policy,
            policy_name=args.policy,
            options=StreamOptions(args.every, args.sentences, args.within),
            model=args.model,
        )
        try:
            for text in stream.released():
                if not args.json:
                    print(text, end="", flush=True)
        except UnsafeTextError as error:
            print(f"\nguard classify: stopped: {error}", file=sys.stderr)
        result = stream.result()
    if args.json:
        print(to_json(result))
    return result


def _describe(result: Classification) -> str:
    lines = [
        f"{result.verdict.name}   P(unsafe) {result.unsafe_score:.3f}   "
        f"{result.model}, {result.usage.prompt_tokens} tokens, {milliseconds(result.timings.total_s)}"
    ]
    flagged = sorted((item for item in result.categories if item.flagged), key=lambda item: -item.score)
    lines += [f"  {item.code:4} {item.score:.3f}  {item.name}" for item in flagged]
    if result.matched_entry is not None and result.decided_by in _LISTS:
        lines.append(f"  note: entry {result.matched_entry} of the {_LISTS[result.decided_by]} of {result.policy.name}")
    if result.decided_by is DecidedBy.CACHE:
        lines.append("  note: the same was judged a short time ago")
    if result.screening is Screening.DECIDED:
        lines.append("  note: the server's screen was sure; its large guard was not asked")
    if result.action is Action.REPORT:
        lines.append(f"  note: the policy {result.policy.name} is in shadow mode: do not block")
    if result.view not in (ViewKind.RAW, None):
        lines.append(f"  note: found in the {result.view.value} reading of the text")
    if result.window.count > 1:
        where = f"characters {result.window.start} to {result.window.end}"
        lines.append(f"  note: {where}, part {result.window.index + 1} of {result.window.count}, were judged worst")
    if result.context_messages_left_out:
        lines.append(
            f"  note: the {result.context_messages_left_out} earliest messages did not fit the model's context"
        )
    if result.forged_delimiters:
        lines.append("  note: the text imitates the guard prompt's own delimiters")
    return "\n".join(lines)
