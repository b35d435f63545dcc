"""Ask a server's health service whether it serves; for container health checks.

exit status: 0 it serves, 1 it does not.
"""

from __future__ import annotations

import argparse
import json

from guard.cli.connection import add_connection_options, connect
from guard.cli.output import add_json_option


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--service", default="", metavar="NAME", help="one gRPC service; empty is the whole server")
    add_connection_options(parser, timeout_s=5)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the status and returns it as an exit status."""
    with connect(args) as client:
        serving = client.is_serving(args.service)
    status = "SERVING" if serving else "NOT_SERVING"
    print(json.dumps({"status": status}) if args.json else status)
    return 0 if serving else 1
