"""Turn a checkpoint into a verified, quantized ONNX bundle.

SOURCE is a Hugging Face checkpoint directory, a GGUF file, or a hub id such as meta-llama/Llama-Guard-3-1B (gated: it
needs an accepted licence and a token). The bundle is complete or absent: it is written beside DIR and renamed.

With --config, many exports that a YAML file lists (docs/export.md): side by side within a memory bound; what is there
already and still as asked for is left as it is, so a run that was killed is simply started again.

exit status: 0 done, 1 failed, 2 wrong options, 4 (with --config) some bundles could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from export.cli_batch import add_batch_options, run_export
from export.pipeline import ExportRequest, export_model
from export.progress import ProgressLines
from export.quantize.profile import PROFILES, PURPOSES
from guard.bundle.manifest import Manifest
from guard.cli.output import add_json_option, megabytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="checkpoint directory, .gguf file, or hub id")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new bundle")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id (its main branch)")
    parser.add_argument("--task", choices=("guard", "instruct"), default="guard", help="what it does (%(default)s)")
    stored = parser.add_mutually_exclusive_group()
    stored.add_argument(
        "--profile",
        choices=PURPOSES,
        help="what matters most: " + ", ".join(f"{purpose} ({name})" for purpose, name in PURPOSES.items()),
    )
    stored.add_argument("--quantization", choices=PROFILES, help="how weights are stored (int8; with optimum: none)")
    parser.add_argument("--adapter", type=Path, metavar="PATH", help="merge a LoRA adapter or a guard head")
    parser.add_argument(
        "--exporter",
        choices=("direct", "optimum"),
        default="direct",
        help="optimum needs the reference extra (%(default)s)",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="the model's name on a server (the source's, and the quantization)"
    )
    parser.add_argument(
        "--max-kl", type=float, metavar="NATS", help="refuse a larger distance from the float32 reference"
    )
    parser.add_argument("--no-parity", action="store_true", help="do not compare with the float32 reference")
    parser.add_argument(
        "--no-calibration", action="store_true", help="round to 4 bits without running texts: sooner, less accurate"
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="also store the weights as this machine packs them: less memory, more disk",
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign the bundle with this private key (PEM)")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle at DIR")
    add_json_option(parser)
    add_batch_options(parser)


def run(args: argparse.Namespace) -> int:
    """Exports one, or with --config many; progress on stderr."""
    return run_export(args, _export)


def _export(args: argparse.Namespace) -> int:
    request = ExportRequest(
        source=args.source,
        out=args.out,
        task=args.task,
        quantization=_quantization(args),
        revision=args.revision,
        adapter=args.adapter,
        exporter=args.exporter,
        name=args.name,
        overwrite=args.overwrite,
        parity=not args.no_parity,
        calibrate=not args.no_calibration,
        max_kl=args.max_kl,
        packed=args.packed,
        sign=args.sign,
    )
    if args.json:
        manifest = export_model(request)
        print(json.dumps({"directory": str(args.out), "manifest": json.loads(manifest.to_json())}))
        return 0
    with ProgressLines(sys.stderr) as progress:
        manifest = export_model(request, progress.show)
    print(_describe(args.out, manifest))
    return 0


def _quantization(args: argparse.Namespace) -> str:
    if args.profile:
        return PURPOSES[args.profile]
    chosen: str | None = args.quantization
    return chosen or ("none" if args.exporter == "optimum" else "int8")


def _describe(out: Path, manifest: Manifest) -> str:
    size = megabytes(sum(record.bytes for record in manifest.files.values()))
    lines = [f"{out}: {manifest.name}, {manifest.task}, {manifest.quantization.name}, {size}"]
    if manifest.parity is not None:
        parity = manifest.parity
        lines.append(
            f"  against {parity.reference} at {parity.positions} positions: mean KL {parity.mean_kl:.2g} nats,"
            f" top-1 agreement {parity.top1_agreement:.1%}, max logit difference {parity.max_abs_logit_difference:.2g}"
        )
    return "\n".join(lines)
