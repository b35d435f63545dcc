"""Export every profile of a checkpoint and check each: prompts, token ids, logits, both modes, your rows, float32.

SOURCE is as for guard export. A line a check, with PASS, FAIL or SKIPPED and the figures; report.json and report.html
in the output directory say the same. Lines that only a trained model can pass say so.

exit status: 0 no line failed, 1 some did, 2 wrong options.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from export.progress import ProgressLines
from export.qualify import Line, QualifyRequest, qualify
from export.qualify.published import published_scores
from export.qualify.run import PROFILES
from guard.cli import EXIT_FAILED
from guard.cli.columns import add_column_options, columns_of
from guard.cli.output import add_json_option
from guard.evaluation.progress import RateLine
from guard.evaluation.rows import read_data


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("source", metavar="SOURCE", help="checkpoint directory, .gguf file, or hub id")
    parser.add_argument("--task", choices=("guard", "instruct"), default="guard", help="what it does (%(default)s)")
    parser.add_argument("--adapter", type=Path, metavar="PATH", help="merge a LoRA adapter or a guard head")
    parser.add_argument("--out", type=Path, default=Path("qualification"), metavar="DIR", help="(%(default)s)")
    parser.add_argument(
        "--profile", action="append", choices=PROFILES, help="only this quantization; repeatable (all that fit memory)"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="labelled rows, as for guard eval")
    parser.add_argument("--limit", type=int, metavar="N", help="a random sample of N rows of --data")
    parser.add_argument("--benchmark", choices=tuple(published_scores()), help="which published benchmark --data is")
    parser.add_argument("--untrained", action="store_true", help="the weights are random: skip what needs trained ones")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="for ONNX Runtime (the container's CPUs)")
    add_column_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the checks, saying each line as it is known."""
    request = QualifyRequest(
        source=args.source,
        out=args.out,
        task=args.task,
        adapter=args.adapter,
        profiles=tuple(args.profile or PROFILES),
        data=None if args.data is None else read_data(args.data, columns_of(args)),
        benchmark=args.benchmark,
        limit=args.limit,
        untrained=args.untrained,
        threads=args.threads,
    )
    if args.json:
        result = qualify(request)
        print(json.dumps({"passed": result.passed, "lines": [asdict(line) for line in result.lines]}))
    else:
        with ProgressLines(sys.stderr) as progress:
            result = qualify(request, _say, progress.show, RateLine(sys.stderr))
        print(f"{'no line failed' if result.passed else 'FAILED'}; {args.out / 'report.html'}")
    return 0 if result.passed else EXIT_FAILED


def _say(line: Line) -> None:
    where = f"{line.check} ({line.profile})" if line.profile else line.check
    print(f"{line.status:7}  {where}: {line.detail}", flush=True)
