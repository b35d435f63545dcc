"""The ``guard`` command. Each subcommand lives in a module of its own that is loaded, by name, only when it is used.

So ``guard --help`` is instant, and an image without the export extra still has a working ``guard serve``. A command
module has ``configure(parser)``, which adds its options, and ``run(args)``, which returns the exit status.

Exit statuses, the same for all commands: 0 done (classify: safe), 1 failed, with one line on stderr that says why,
2 the command line is wrong, 3 unsafe (classify, generate --moderate), 4 some of several failed (export --config, bulk),
130 interrupted. Only 0 means safe.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guard.errors import GuardError, InvalidInputError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 4
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """Where a subcommand lives, and which extra of the distribution it needs."""

    module: str
    extra: str | None
    summary: str


COMMANDS = {
    "export": Command("export.cli", "export", "turn a checkpoint into a verified, quantized ONNX bundle"),
    "serve": Command("server.cli", "server", "serve bundles over gRPC"),
    "classify": Command("guard.cli.classify", "client", "judge a prompt or a response"),
    "generate": Command("guard.cli.generate", "client", "let the instruct model answer"),
    "tag": Command("guard.cli.tag", "client", "choose a label for a text"),
    "eval": Command("guard.cli.eval", "eval", "measure a guard on labelled rows"),
    "screen": Command("guard.cli.screen", "eval", "choose the thresholds of a small guard before a large one"),
    "bulk": Command("guard.cli.bulk", "bulk", "judge a file of rows"),
    "health": Command("guard.cli.health", "client", "ask a server whether it serves"),
    "policies": Command("server.cli_policies", "server", "check a file of policies, and show what each comes to"),
    "keys": Command("server.cli_keys", "server", "make an API key for a caller, or check the file of callers"),
    "verify": Command("guard.cli.verify", None, "check every file of a bundle against its manifest"),
    "plan": Command("guard.cli.plan", None, "tell how much memory a bundle needs"),
    "pack": Command("export.cli_pack", "export", "store a bundle's weights as this machine packs them"),
    "qualify": Command("export.cli_qualify", "export", "check a checkpoint by exporting every profile of it"),
    "synth": Command("export.cli_synth", "export", "make a random checkpoint, for speed and memory work"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output left; nobody is there to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else EXIT_USAGE
    if name == "--version":
        from importlib.metadata import version  # 20 ms that no other command needs

        print(f"guardlet {version('guardlet')}")
        return 0
    if name not in COMMANDS:
        print(f"guard: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    return _run(name, arguments[1:])


def _help() -> str:
    lines = [f"  {name:10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: guard COMMAND ...", "", *lines, "", "guard COMMAND --help tells the options of a command."]
    )


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if (error.name or "guard").partition(".")[0] in ("guard", "export", "server"):
            raise  # one of ours is broken; not a missing extra
        install = f"pip install 'guardlet[{command.extra}]'"
        print(f"guard {name}: needs the Python package {error.name}; {install}", file=sys.stderr)
        return EXIT_FAILED
    parser = argparse.ArgumentParser(
        prog=f"guard {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.configure(parser)
    args = parser.parse_args(arguments)
    try:
        status: int = module.run(args)
        return status
    except GuardError as error:
        return _fail(name, args, error)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(name, args, GuardError(f"{where}{error.strerror or type(error).__name__}"))
    except KeyboardInterrupt:
        print(f"\nguard {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _fail(name: str, args: argparse.Namespace, error: GuardError) -> int:
    message = " ".join(str(error).split())
    as_json = getattr(args, "json", False)
    print(
        json.dumps({"error": _error_json(error, message)}) if as_json else f"guard {name}: {message}", file=sys.stderr
    )
    return EXIT_FAILED


def _error_json(error: GuardError, message: str) -> dict[str, Any]:
    """``GuardClientError`` adds its fields; read by name, so that this module does not load gRPC."""
    value: dict[str, Any] = {"type": type(error).__name__, "reason": error.reason, "message": message}
    code = getattr(error, "code", None)
    if code is not None:
        value["code"] = code.name
    violations = getattr(error, "field_violations", ())
    fields = [{"field": violation.field, "description": violation.description} for violation in violations]
    if isinstance(error, InvalidInputError):
        fields = [{"field": error.field, "description": error.problem}]
    if fields:
        value["field_violations"] = fields
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        value["retry_after_s"] = retry_after_s
    return value
