"""From a checkpoint to a report: export every profile, check each, and say PASS, FAIL or SKIPPED with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from export.checkpoint import open_checkpoint
from export.checkpoint.model import Checkpoint
from export.memory import available_bytes, needed_bytes
from export.pipeline import ExportRequest, Progress, export_checkpoint
from export.qualify.checks import check_answer_tokens, check_prompts
from export.qualify.guard_checks import GuardSetup, check_guard
from export.qualify.instruct_checks import check_answers
from export.qualify.lines import Line, Lines, Result
from export.qualify.published import published_scores
from export.qualify.report import write_report
from guard.bundle.manifest import Manifest, Task
from guard.errors import GuardError, InvalidInputError
from guard.evaluation.rows import DataSet
from guard.evaluation.runner import Progress as RowProgress
from guard.prompt import LLAMA_GUARD_3_1B

#: float32 first: the others are compared with it.
PROFILES = ("none", "int8", "int4", "int4-small")


@dataclass(frozen=True)
class QualifyRequest:
    """What to qualify. ``out`` gets a bundle a profile, an evaluation of each, and the report.

    ``data`` are labelled rows of the user's; ``benchmark`` names the published one that they are. ``untrained`` skips
    what random weights cannot pass. ``limit`` rows of ``data`` are evaluated, all by default. ``threads``: 0 = the
    container's CPU quota.
    """

    source: str
    out: Path
    task: Task = "guard"
    adapter: Path | None = None
    profiles: tuple[str, ...] = PROFILES
    data: DataSet | None = None
    benchmark: str | None = None
    limit: int | None = None
    untrained: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.profiles or any(name not in PROFILES for name in self.profiles):
            raise InvalidInputError("profiles", f"expected some of {', '.join(PROFILES)}")
        if self.benchmark is not None and self.benchmark not in published_scores():
            raise InvalidInputError("benchmark", f"expected one of {', '.join(published_scores())}")
        if self.benchmark is not None and self.data is None:
            raise InvalidInputError("benchmark", "names what --data is, and there is none")


@dataclass(frozen=True)
class Qualification:
    """``passed``: no line failed. ``figures`` by profile: size, parity, and of a guard the evaluation's main ones."""

    passed: bool
    lines: tuple[Line, ...]
    figures: dict[str, Any]


def qualify(
    request: QualifyRequest,
    said: Callable[[Line], None] = lambda line: None,
    progress: Progress = lambda step, fraction: None,
    rows: RowProgress = lambda done, total, resumed: None,
) -> Qualification:
    """Run every check, and write report.json and report.html to ``request.out``.

    ``said`` hears each line as it is known. Whatever fails on purpose is a line; raises only for ``out`` itself.
    """
    lines = Lines(request.untrained, said)
    request.out.mkdir(parents=True, exist_ok=True)
    opened: list[Checkpoint] = []
    if lines.add("checkpoint", lambda: _open(request, opened)):
        _check(request, opened[0], lines, progress, rows)
    result = Qualification(lines.passed, tuple(lines.lines), lines.figures)
    source = opened[0].source if opened else None
    write_report(request.out, source, request.task, result.lines, result.figures)
    return result


def _open(request: QualifyRequest, opened: list[Checkpoint]) -> Result:
    checkpoint = open_checkpoint(request.source, adapter=request.adapter)
    opened.append(checkpoint)
    # An adapter's guard head has a few rows; the rest of the output head that its spec has is never exported.
    spec = replace(checkpoint.spec, tied_embeddings=True) if checkpoint.guard_format is not None else checkpoint.spec
    parameters = sum(math.prod(shape) for shape in spec.expected_tensors().values())
    files = len(checkpoint.source.files)
    return "PASS", f"{parameters / 1e6:.1f} million parameters, {files} files read and hashed"


def _check(
    request: QualifyRequest, checkpoint: Checkpoint, lines: Lines, progress: Progress, rows: RowProgress
) -> None:
    guard = (checkpoint.guard_format or LLAMA_GUARD_3_1B) if request.task == "guard" else None
    lines.add("prompts against the chat template", lambda: check_prompts(checkpoint, request.task, guard))
    if guard is not None:
        lines.add("answer tokens", lambda: check_answer_tokens(checkpoint, guard))
    setup = GuardSetup(request.out, request.data, request.benchmark, request.limit, request.threads, rows)
    for profile in (name for name in PROFILES if name in request.profiles):
        export = partial(_export, request, checkpoint, profile, lines, progress)
        if not lines.add("export", export, profile=profile):
            continue
        lines.add("logits against the numpy reference", partial(_parity, lines, profile), profile=profile)
        if request.task == "guard":
            check_guard(setup, profile, lines)
        else:
            answers = partial(check_answers, request.out / profile, request.threads)
            lines.add("answers plain questions", answers, profile=profile, needs_trained=True)


def _export(request: QualifyRequest, checkpoint: Checkpoint, profile: str, lines: Lines, progress: Progress) -> Result:
    available, needed = available_bytes(), needed_bytes(checkpoint.spec, profile)
    if available is not None and needed > available:
        return "SKIPPED", f"needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
    export = ExportRequest(
        source=request.source,
        out=request.out / profile,
        task=request.task,
        quantization=profile,
        adapter=request.adapter,
        overwrite=True,
        threads=request.threads,
    )
    manifest = export_checkpoint(checkpoint, export, progress)
    size = sum(record.bytes for record in manifest.files.values())
    lines.figures[profile] = {"bytes": size, "parity": _parity_figures(manifest)}
    return "PASS", f"{size / 1e6:.1f} MB"


def _parity_figures(manifest: Manifest) -> dict[str, Any]:
    parity = manifest.parity
    if parity is None:
        raise GuardError("the export measured no parity")
    return {
        "positions": parity.positions,
        "mean_kl": parity.mean_kl,
        "top1_agreement": parity.top1_agreement,
        "max_abs_logit_difference": parity.max_abs_logit_difference,
        "max_unsafe_score_difference": parity.max_unsafe_score_difference,
    }


def _parity(lines: Lines, profile: str) -> Result:
    """The export refuses a profile beyond its bounds, so what is here is within them; the line gives the figures."""
    parity = lines.figures[profile]["parity"]
    score = parity["max_unsafe_score_difference"]
    more = "" if score is None else f", P(unsafe) within {score:.3g}"
    return "PASS", (
        f"{parity['positions']} positions: mean KL {parity['mean_kl']:.2g} nats,"
        f" top-1 agreement {parity['top1_agreement']:.1%}{more}"
    )
