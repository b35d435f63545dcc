"""Store a bundle's weights also as ONNX Runtime packs them on this machine: a server then maps them from the file.

They take no anonymous memory then, and servers on one host share them. The file is about 1.8 times as large. On another
kind of processor, or with another ONNX Runtime, the bundle works as before it was packed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.packing import pack_bundle
from guard.cli.output import add_json_option, megabytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("bundle", type=Path, metavar="DIR", help="an exported bundle")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new bundle")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign it with this private key (PEM)")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle at --out")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Packs."""
    manifest = pack_bundle(args.bundle, args.out, args.overwrite, args.sign)
    if args.json:
        print(json.dumps({"directory": str(args.out), "manifest": json.loads(manifest.to_json())}))
        return 0
    size = 0 if manifest.packed is None else manifest.packed.bytes
    print(f"{args.out}: {manifest.name}, {megabytes(size)} of packed weights")
    return 0
