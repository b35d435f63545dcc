"""Options that every command which talks to a server shares."""

from __future__ import annotations

import argparse
import os

from guard.cli.credentials import add_credential_options, api_key
from guard.client import GuardClient, tls_credentials

#: The variable the server reads its own address from, so that both follow the same setting in one container.
ADDRESS_VARIABLE = "GUARD_ADDRESS"
DEFAULT_ADDRESS = "127.0.0.1:50051"


def add_connection_options(parser: argparse.ArgumentParser, timeout_s: float) -> None:
    """``timeout_s`` is the command's default deadline in seconds."""
    address = os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
    where = f"the server (${ADDRESS_VARIABLE}, or {DEFAULT_ADDRESS})"
    parser.add_argument("--address", default=address, metavar="HOST:PORT", help=where)
    parser.add_argument(
        "--timeout", type=positive_seconds, default=timeout_s, metavar="S", help="deadline in seconds (%(default)g)"
    )
    add_credential_options(parser)


def connect(args: argparse.Namespace) -> GuardClient:
    """A client for the parsed options."""
    files = (args.tls_ca, args.tls_cert, args.tls_key)
    credentials = None
    if args.tls or any(files):
        credentials = tls_credentials(*(file.read_bytes() if file else None for file in files))
    return GuardClient(args.address, credentials=credentials, api_key=api_key(args), timeout_s=args.timeout)


def positive_seconds(text: str) -> float:
    """An argparse type."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("expected a number of seconds above 0")
    return value
