"""Options that every command which talks to a server shares."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from guard.client import GuardClient, tls_credentials
from guard.errors import InvalidInputError

#: The variable the server reads its own address from, so that both follow the same setting in one container.
ADDRESS_VARIABLE = "GUARD_ADDRESS"
DEFAULT_ADDRESS = "127.0.0.1:50051"
#: An API key or a token, where no file is named: options can be read by every user of the machine, so there is none.
KEY_VARIABLE = "GUARD_API_KEY"


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
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="our certificate (PEM), if the server wants one")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"file of the API key or token (${KEY_VARIABLE})"
    )


def connect(args: argparse.Namespace) -> GuardClient:
    """A client for the parsed options."""
    files = (args.tls_ca, args.tls_cert, args.tls_key)
    credentials = None
    if args.tls or any(files):
        credentials = tls_credentials(*(file.read_bytes() if file else None for file in files))
    return GuardClient(args.address, credentials=credentials, api_key=_api_key(args), timeout_s=args.timeout)


def _api_key(args: argparse.Namespace) -> str | None:
    if args.api_key_file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key: str = args.api_key_file.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise InvalidInputError("api_key_file", f"{args.api_key_file}: holds no key")
    return key


def positive_seconds(text: str) -> float:
    """An argparse type."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("expected a number of seconds above 0")
    return value
