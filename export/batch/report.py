"""What became of a batch: exports.json for machines, exports.md and a table for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from export.batch.config import JSON_FILE, MARKDOWN_FILE, Job
from export.batch.records import Record
from guard.bundle.manifest import Manifest, Parity
from guard.cli.output import megabytes
from guard.evaluation.evaluate import write_whole

FORMAT = "guardlet-exports"
FORMAT_VERSION = 1

#: ``current``: there already, as asked for. ``planned``: of a dry run, would be made. ``skipped``: not chosen, or not
#: started because the run ended before.
Outcome = Literal["made", "current", "failed", "skipped", "planned"]


@dataclass(frozen=True)
class Row:
    """One bundle. ``bytes``, ``shape``, ``parity`` and ``manifest_sha256`` are those of the bundle that is there now,
    which after a failure may be an older one. ``seconds`` and ``peak_bytes`` (resident) are of the export that made it,
    or failed to; ``estimated_bytes`` is what the memory bound counts.
    """

    name: str
    directory: str
    source: str
    revision: str | None
    adapter: str | None
    task: str
    quantization: str
    packed: bool
    outcome: Outcome
    reason: str
    bytes: int | None
    shape: dict[str, Any] | None
    parity: dict[str, Any] | None
    manifest_sha256: str | None
    seconds: float | None
    peak_bytes: int | None
    estimated_bytes: int | None

    @classmethod
    def of(
        cls,
        job: Job,
        manifest: Manifest | None,
        record: Record | None,
        estimate: int | None,
        outcome: Outcome,
        reason: str,
    ) -> Row:
        """The row of ``job`` with what its bundle's manifest and its record tell."""
        request = job.request
        recorded = record if record is not None and record.manifest is not None else None
        return cls(
            name=job.name,
            directory=str(request.out),
            source=request.source,
            revision=request.revision,
            adapter=None if request.adapter is None else str(request.adapter),
            task=request.task,
            quantization=request.quantization,
            packed=request.packed,
            outcome=outcome,
            reason=reason,
            bytes=None if manifest is None else sum(file.bytes for file in manifest.files.values()),
            shape=None if manifest is None else asdict(manifest.shape),
            parity=None if manifest is None or manifest.parity is None else _parity(manifest.parity),
            manifest_sha256=None if recorded is None or manifest is None else recorded.manifest,
            seconds=None if recorded is None else recorded.seconds,
            peak_bytes=None if recorded is None else recorded.peak_bytes,
            estimated_bytes=estimate,
        )

    def line(self) -> str:
        """What is said when its outcome is known."""
        if self.outcome == "made" and self.bytes is not None:
            return f"{self.name}: made, {megabytes(self.bytes)} in {_seconds(self)} s, at most {_peak(self)} MiB"
        return f"{self.name}: {self.outcome}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """A whole run. ``max_memory``: bytes, None where nothing bounded it; ``seconds`` it took."""

    config: str
    output: str
    max_memory: int | None
    seconds: float
    exports: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Every chosen bundle is there, as asked for (of a dry run: nothing stands in the way)."""
        return not any(row.outcome == "failed" or row.reason == "not started" for row in self.exports)

    def counts(self) -> dict[str, int]:
        """How many of each outcome there are."""
        outcomes = [row.outcome for row in self.exports]
        return {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}

    def to_json(self) -> dict[str, Any]:
        """The object of exports.json; fields are added, never renamed."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "passed": self.passed,
            "counts": self.counts(),
            **asdict(self),
        }

    def write(self, directory: Path) -> None:
        """Replace both files in ``directory``."""
        write_whole(directory / JSON_FILE, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")
        write_whole(directory / MARKDOWN_FILE, self.to_markdown())

    def to_markdown(self) -> str:
        """A table, and what was said about those that are not there."""
        cells = [[_escaped(cell) for cell in row] for row in _cells(self.exports)]
        rule = "|".join("---" if index < _TEXT_COLUMNS else "---:" for index in range(len(cells[0])))
        lines = [f"| {' | '.join(row)} |" for row in cells]
        failed = [f"- **{row.name}**: {_escaped(row.reason)}" for row in self.exports if row.outcome == "failed"]
        parts = [f"# Exports\n\n{self.summary()}.", "\n".join([lines[0], f"|{rule}|", *lines[1:]])]
        return "\n\n".join([*parts, *(["## Failed", "\n".join(failed)] if failed else [])]) + "\n"

    def table(self) -> str:
        """For a terminal: the same in columns, then the reasons, then the sum."""
        cells = _cells(self.exports)
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        told = ("failed", "planned")
        reasons = [f"{row.name}: {row.outcome}: {row.reason}" for row in self.exports if row.outcome in told]
        return "\n".join([*lines, *reasons, self.summary()])

    def summary(self) -> str:
        """How many of each outcome, and the time."""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts().items())
        return f"{len(self.exports)} exports: {counts}; {self.seconds:.1f} s"


_TEXT_COLUMNS = 5
_HEADER = ("name", "outcome", "task", "quantization", "layers x hidden", "MB", "KL", "top-1", "s", "MiB", "est. MiB")


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [list(_HEADER), *(_row_cells(row) for row in rows)]


def _row_cells(row: Row) -> list[str]:
    shape, parity = row.shape, row.parity
    return [
        row.name,
        row.outcome,
        row.task,
        row.quantization + (", packed" if row.packed else ""),
        "-" if shape is None else f"{shape['layers']} x {shape['hidden_size']}",
        "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        "-" if parity is None else f"{parity['mean_kl']:.2g}",
        "-" if parity is None else f"{parity['top1_agreement']:.3f}",
        _seconds(row),
        _peak(row),
        "-" if row.estimated_bytes is None else f"{row.estimated_bytes / (1 << 20):.0f}",
    ]


def _seconds(row: Row) -> str:
    return "-" if row.seconds is None else f"{row.seconds:.1f}"


def _peak(row: Row) -> str:
    return "-" if row.peak_bytes is None else f"{row.peak_bytes / (1 << 20):.0f}"


def _parity(parity: Parity) -> dict[str, Any]:
    """Without the known answer, which is for the runtime."""
    figures = asdict(parity)
    del figures["probe"]
    return figures


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
