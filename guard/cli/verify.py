"""Check every file of a bundle against its manifest: all there, none besides, every SHA-256 as written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from guard.bundle import BundleKey, open_bundle
from guard.cli.output import add_json_option, megabytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("bundle", type=Path, metavar="DIR", help="an exported bundle")
    parser.add_argument("--key", type=Path, metavar="FILE", help="refuse what is not signed with this public key (PEM)")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what was checked; a bundle that does not hold raises BundleError."""
    key = None if args.key is None else BundleKey.read(args.key)
    manifest = open_bundle(args.bundle, key, whole_files=True).manifest
    if args.json:
        files = {name: {"sha256": record.sha256, "bytes": record.bytes} for name, record in manifest.files.items()}
        checked = {"verified": True, "signed": key is not None}
        print(json.dumps({"name": manifest.name, "task": manifest.task, **checked, "files": files}))
        return 0
    verified = f"{len(manifest.files)} files verified" + ("" if key is None else ", signature too")
    print(f"{manifest.name}: {manifest.task}, {manifest.quantization.name}, {verified}")
    for name, record in sorted(manifest.files.items()):
        print(f"  {record.sha256[:16]}  {megabytes(record.bytes):>10}  {name}")
    return 0
