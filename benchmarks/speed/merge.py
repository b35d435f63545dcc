"""Some workloads of a part measured again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(before: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """A part with some workloads measured again. Load times and memory stay those of the whole run."""
    engines = {name for row in before["workloads"].values() for name in row["ms"]}
    absent = {
        f"{engine}: {workload}": "not in the run that measured this again"
        for workload, row in again["workloads"].items()
        for engine in sorted(engines - set(row["ms"]))
    }
    skipped = {
        name: why for name, why in before["skipped"].items() if name.partition(": ")[2] not in again["workloads"]
    }
    return {
        **before,
        "workloads": before["workloads"] | again["workloads"],
        "skipped": skipped | absent | again["skipped"],
    }
