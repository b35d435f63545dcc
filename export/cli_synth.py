"""Make a random checkpoint in the exact form of a real one: the shape of the gated 1B models, or a tiny one.

The weights are noise, so answers mean nothing. For speed and memory work, and for tests.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.synthetic import LLAMA_3_2_1B, TINY, make_checkpoint
from guard.cli.output import add_json_option, megabytes

_SHAPES = {"tiny": TINY, "1b": LLAMA_3_2_1B}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new checkpoint directory")
    parser.add_argument("--shape", choices=tuple(_SHAPES), default="tiny", help="tiny, or Llama 3.2 1B's (%(default)s)")
    parser.add_argument("--task", choices=("guard", "instruct"), default="instruct", help="whose chat template")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json with Llama 3's control tokens")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same bytes (%(default)s)"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint."""
    spec = _SHAPES[args.shape]
    make_checkpoint(args.out, spec, seed=args.seed, tokenizer=args.tokenizer, guard=args.task == "guard")
    files = {path.name: path.stat().st_size for path in sorted(args.out.iterdir())}
    if args.json:
        print(json.dumps({"directory": str(args.out), "files": files}))
        return 0
    print(f"{args.out}: random {args.shape} checkpoint, {megabytes(sum(files.values()))}")
    return 0
