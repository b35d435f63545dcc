"""Serve exported bundles over gRPC, until SIGTERM or Ctrl-C.

Every setting can also come from a GUARD_* variable (GUARD_KV_CACHE_MIB=256) or from the YAML file of --config
(kv_cache_mib: 256). Options win over variables, variables over the file. docs/configuration.md lists all settings.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server.app import run as run_server
from server.settings import load_settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options. None means: not given here."""
    parser.add_argument("--guard", type=Path, metavar="DIR", help="bundle of the guard model")
    parser.add_argument("--instruct", type=Path, metavar="DIR", help="bundle of the instruct model")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="where to listen; port 0 takes a free one (127.0.0.1:50051)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument("--policies", type=Path, metavar="FILE", help="YAML file of named policies")
    parser.add_argument("--threads", type=int, metavar="N", help="compute threads; 0 is the container's CPU quota")
    parser.add_argument(
        "--allow-insecure", action="store_true", default=None, help="listen for other machines without encryption"
    )


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    flags = {name: value for name, value in vars(args).items() if name != "config"}
    return run_server(load_settings(flags, os.environ, args.config))
