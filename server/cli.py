"""Serve exported bundles over gRPC, until SIGTERM or Ctrl-C.

Every setting can also come from a GUARD_* variable (GUARD_KV_CACHE_MIB=256) or from the YAML file of --config
(kv_cache_mib: 256). Options win over variables, variables over the file. docs/configuration.md lists all settings.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server.app import run as run_server
from server.print_config import described
from server.settings_sources import load_with_sources


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options. None means: not given here."""
    parser.add_argument("--guard", type=Path, metavar="DIR", help="bundle of the guard model")
    parser.add_argument(
        "--screen", type=Path, metavar="DIR", help="bundle of a smaller guard that is asked first; needs a threshold"
    )
    parser.add_argument(
        "--screen-safe-below", type=float, metavar="P", help="its SAFE stands below this score (0: never)"
    )
    parser.add_argument(
        "--screen-unsafe-above", type=float, metavar="P", help="its UNSAFE stands above this score (1: never)"
    )
    parser.add_argument("--instruct", type=Path, metavar="DIR", help="bundle of the instruct model")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="where to listen; port 0 takes a free one (127.0.0.1:50051)"
    )
    parser.add_argument("--http-address", metavar="HOST:PORT", help="where to speak HTTP as OpenAI does (off)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument("--policies", type=Path, metavar="FILE", help="YAML file of named policies")
    parser.add_argument("--threads", type=int, metavar="N", help="compute threads; 0 is the container's CPU quota")
    parser.add_argument(
        "--allow-insecure", action="store_true", default=None, help="listen for other machines without encryption"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate (PEM): turns TLS on")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's private key (PEM)")
    parser.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="demand client certificates of these authorities (PEM)"
    )
    parser.add_argument("--callers", type=Path, metavar="FILE", help="YAML file of those who may call")
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings and where each came from, and do not serve"
    )


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    flags = {name: value for name, value in vars(args).items() if name not in ("config", "print_config")}
    settings, sources = load_with_sources(flags, os.environ, args.config)
    if args.print_config:
        print(described(settings, sources))
        return 0
    return run_server(settings)
