"""How much memory a container needs, for common sets of models: the table in docs/deployment.md.

``python -m tools.sizing`` prints it. The bundles themselves are gigabytes, so their manifests are kept in
tests/data/manifests: of random checkpoints of the 1B shape (``guard synth --shape 1b``), and of the embedded models. A
plan needs no more than the sizes of files and the shape, which are the same for the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.bundle.manifest import Manifest
from guard.engine.settings import EngineSettings
from guard.plan import MIB, Plan, plan_server

MANIFESTS = Path(__file__).resolve().parent.parent / "tests" / "data" / "manifests"
#: What `guard serve` lets wait by default, of moderation and generation together.
_REQUEST_BYTES = 32 * MIB
#: The share of a limit that is planned for, as where the plan chooses the KV cache itself; the rest is for the system.
_USABLE = 0.95
_STEP = 64 * MIB


@dataclass(frozen=True)
class Row:
    """A server: its title, bundles, and each one's KV cache in bytes."""

    title: str
    bundles: tuple[str, ...]
    kv_bytes: int


PLANNED = (
    Row("embedded guard", ("embedded-guard",), 128 * MIB),
    Row("embedded guard and instruct", ("embedded-guard", "embedded-instruct"), 128 * MIB),
    Row("1B guard, int4", ("1bguard-int4",), 256 * MIB),
    Row("1B guard, int8", ("1bguard-int8",), 256 * MIB),
    Row("1B guard, int8, for more at once", ("1bguard-int8",), 512 * MIB),
    Row("1B guard and instruct, int4", ("1bguard-int4", "1binstruct-int4"), 256 * MIB),
    Row("1B guard and instruct, int8", ("1bguard-int8", "1binstruct-int8"), 512 * MIB),
)


def manifest(name: str) -> Manifest:
    """That of one of the kept ones."""
    return Manifest.from_json((MANIFESTS / f"{name}.json").read_bytes())


def plan(manifests: Sequence[Manifest], kv_bytes: int) -> Plan:
    """The plan with default settings but for the KV cache."""
    return plan_server(manifests, EngineSettings(), _REQUEST_BYTES, kv_bytes, limit=1 << 62)


def recommended(manifests: Sequence[Manifest], kv_bytes: int) -> int:
    """The memory limit in bytes: the plan, 5% for files and sockets, in whole steps of 64 MiB."""
    return -int(-plan(manifests, kv_bytes).total / _USABLE // _STEP) * _STEP


def table() -> str:
    """The rows in Markdown."""
    lines = ["| models | weights | KV cache, each | tokens at once, each | needed | limit |"]
    lines.append("|---|" + "---:|" * 5)
    for row in PLANNED:
        manifests = [manifest(name) for name in row.bundles]
        found = plan(manifests, row.kv_bytes)
        weights = sum(model.weights for model in found.models)
        tokens = min(model.kv_tokens for model in found.models)
        limit = recommended(manifests, row.kv_bytes)
        cells = [f"{size / MIB:,.0f} MiB" for size in (weights, row.kv_bytes)]
        cells += [f"{tokens:,}", f"{found.total / MIB:,.0f} MiB", f"{limit // MIB}Mi"]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
