"""Tell how much memory a bundle needs: its weights, and the key and value cache of the tokens that are in flight.

Read from the manifest. ONNX Runtime's own working memory (packed copies of weights, activations) comes on top.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from guard.bundle.manifest import MANIFEST_FILE, Manifest
from guard.cli.output import add_json_option, megabytes
from guard.errors import InvalidInputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("bundle", type=Path, metavar="DIR", help="an exported bundle")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="tokens in flight over all requests (the model's context)"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the arithmetic."""
    manifest = Manifest.from_json((args.bundle / MANIFEST_FILE).read_bytes())
    tokens = manifest.shape.max_positions if args.tokens is None else args.tokens
    if tokens < 0:
        raise InvalidInputError("tokens", "expected 0 or more")
    weights = sum(record.bytes for name, record in manifest.files.items() if name.startswith(manifest.graph.file))
    per_token = manifest.shape.kv_bytes_per_token
    plan = {
        "model": manifest.name,
        "quantization": manifest.quantization.name,
        "weights_bytes": weights,
        "kv_bytes_per_token": per_token,
        "tokens": tokens,
        "kv_bytes": per_token * tokens,
        "total_bytes": weights + per_token * tokens,
    }
    if args.json:
        print(json.dumps(plan))
        return 0
    shape = manifest.shape
    print(f"{manifest.name} ({manifest.quantization.name})")
    print(f"  weights          {megabytes(weights):>12}   the ONNX graph and its external data")
    print(
        f"  + KV cache       {megabytes(per_token * tokens):>12}   {tokens} tokens x {per_token} bytes"
        f" (2 x {shape.layers} layers x {shape.kv_heads} KV heads x {shape.head_dim} x 4)"
    )
    print(f"  = total          {megabytes(weights + per_token * tokens):>12}   ONNX Runtime's working memory on top")
    return 0
