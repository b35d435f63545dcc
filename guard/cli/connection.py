"""Options that every command which talks to a server shares."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

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
    parser.add_argument("--tls", action="store_true", help="use TLS and the system's root certificates")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="use TLS and these root certificates (PEM)")


def connect(args: argparse.Namespace) -> GuardClient:
    """A client for the parsed options."""
    credentials = None
    if args.tls or args.tls_ca:
        credentials = tls_credentials(args.tls_ca.read_bytes() if args.tls_ca else None)
    return GuardClient(args.address, credentials=credentials, timeout_s=args.timeout)


def positive_seconds(text: str) -> float:
    """An argparse type."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("expected a number of seconds above 0")
    return value
