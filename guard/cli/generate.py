"""Let the instruct model of a running server answer; the text appears while it is being written.

exit status: 0 done, 3 the guard withheld the answer (--moderate), 1 failed (the reason is on stderr), 2 wrong options.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from guard.cli.connection import add_connection_options, connect
from guard.cli.messages import read_context, read_json_object, read_text, read_tools
from guard.cli.output import add_json_option, to_json
from guard.client import GeneratedChoice, GenerationOptions, GenerationResult, GenerationStream, ModerationOptions
from guard.conversation import Message, Role, ToolCall
from guard.errors import InvalidInputError
from guard.generation import ChoiceFormat, JsonFormat, OutputFormat, RegexFormat, ToolChoice, ToolMode

EXIT_WITHHELD = 3
_MODES = [mode.value for mode in ToolMode]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads standard input")
    parser.add_argument("--context", type=Path, metavar="FILE", help="earlier messages: a JSON array or JSON lines")
    parser.add_argument("--system", metavar="TEXT", help="a system message, put first")
    parser.add_argument("--plain", action="store_true", help="go on with PROMPT as it is, without a chat around it")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="write at most so many tokens")
    parser.add_argument("--choices", type=int, metavar="N", help="write so many texts; shown when all are ready")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")
    parser.add_argument("--model", default="", metavar="NAME", help="which instruct model, when the server has several")
    parser.add_argument(
        "--moderate", action="store_true", help="let the guard judge the prompt and the text; unsafe text is not shown"
    )
    _add_sampling(parser.add_argument_group("sampling (default: the checkpoint's own)"))
    _add_form(parser.add_argument_group("form of the answer"))
    add_connection_options(parser, timeout_s=300)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Streams the answer to stdout; several answers, and with ``--json`` any, are printed whole."""
    if args.logprobs is not None and not args.json:
        raise InvalidInputError("--logprobs", "only with --json")
    if args.plain and (args.system is not None or args.context is not None):
        raise InvalidInputError("--plain", "not with --system or --context: there is no chat to put them in")
    text = read_text(args.prompt) if args.plain else _messages(args)
    options = _options(args)
    whole = args.json or (args.choices or 1) > 1
    with connect(args) as client:
        if whole:
            result = client.generate(text, options, model=args.model)
        else:
            result = _print_stream(client.stream_generate(text, options, model=args.model))
    if args.json:
        print(to_json(result))
    elif whole:
        _print_choices(result)
    withheld = result.finish_reason == "content_filter"
    if withheld:
        print("guard generate: the guard withheld the answer", file=sys.stderr)
    return EXIT_WITHHELD if withheld else 0


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token each time")
    group.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling, 0 to 1")
    group.add_argument("--top-k", type=int, metavar="K", help="only the K most likely tokens; 0 is no limit")
    group.add_argument("--min-p", type=float, metavar="P", help="only tokens P times as likely as the best, 0 to 1")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 repeats prompt and text less")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="above 0 repeats the text less, -2 to 2")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="the same, once for each time, -2 to 2")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log probabilities, also of the N most likely tokens"
    )


def _add_form(group: argparse._ArgumentGroup) -> None:
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json-schema", type=Path, metavar="FILE", help="JSON that this JSON Schema accepts")
    form.add_argument("--regex", metavar="PATTERN", help="text that this regular expression matches as a whole")
    form.add_argument("--choice", action="append", metavar="TEXT", help="one of these texts; repeat the option")
    form.add_argument(
        "--tools", type=Path, metavar="FILE", help="functions to call: a JSON array of name, description, parameters"
    )
    group.add_argument(
        "--tool-choice", metavar="WHICH", help=f"with --tools: {', '.join(_MODES)}, or the name of one (auto)"
    )


def _messages(args: argparse.Namespace) -> list[Message]:
    system = [] if args.system is None else [Message(Role.SYSTEM, args.system)]
    return [*system, *read_context(args.context), Message(Role.USER, read_text(args.prompt))]


def _options(args: argparse.Namespace) -> GenerationOptions:
    return GenerationOptions(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        stop=tuple(args.stop),
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logprobs=args.logprobs,
        choices=args.choices,
        plain=args.plain,
        tools=() if args.tools is None else read_tools(args.tools),
        tool_choice=None if args.tool_choice is None else _tool_choice(args.tool_choice),
        output_format=_output_format(args),
        moderation=ModerationOptions() if args.moderate else None,
    )


def _tool_choice(which: str) -> ToolChoice:
    return ToolChoice(ToolMode(which)) if which in _MODES else ToolChoice(name=which)


def _output_format(args: argparse.Namespace) -> OutputFormat | None:
    if args.json_schema is not None:
        return JsonFormat(read_json_object(args.json_schema, "--json-schema"))
    if args.regex is not None:
        return RegexFormat(args.regex)
    return None if args.choice is None else ChoiceFormat(tuple(args.choice))


def _print_stream(stream: GenerationStream) -> GenerationResult:
    for delta in stream:
        print(delta.text, end="", flush=True)
    result = stream.result()
    if result.text or not result.tool_calls:
        print()
    for line in _call_lines(result.tool_calls):
        print(line)
    return result


def _print_choices(result: GenerationResult) -> None:
    first = GeneratedChoice(result.text, result.finish_reason, result.tool_calls)
    for number, choice in enumerate((first, *result.further_choices), start=1):
        print(f"--- {number} ({choice.finish_reason})")
        for line in ([choice.text] if choice.text else []) + _call_lines(choice.tool_calls):
            print(line)


def _call_lines(calls: tuple[ToolCall, ...]) -> list[str]:
    return [f"{call.name}({call.arguments})" for call in calls]
