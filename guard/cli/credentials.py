"""Options that say who calls, and whom to trust. Needs no gRPC, as commands do that work without a server too."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from guard.errors import InvalidInputError

#: An API key or a token, where no file is named: options can be read by every user of the machine, so there is none.
KEY_VARIABLE = "GUARD_API_KEY"


def add_credential_options(parser: argparse.ArgumentParser) -> None:
    """TLS, and the caller's key."""
    parser.add_argument("--tls", action="store_true", help="use TLS and the system's root certificates")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="use TLS and these root certificates (PEM)")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="our certificate (PEM), if the server wants one")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"file of the API key or token (${KEY_VARIABLE})"
    )


def api_key(args: argparse.Namespace) -> str | None:
    """The key of the file, or of the variable; raises InvalidInputError for a file without one."""
    if args.api_key_file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key: str = args.api_key_file.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise InvalidInputError("api_key_file", f"{args.api_key_file}: holds no key")
    return key
