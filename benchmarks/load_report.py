"""The figures of ``benchmarks.load`` for people: a table for each kind of request, a chart, and how to read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.chart import Line, Panel, chart

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Phase:
    """Requests that arrived at ``multiple`` times the capacity. ``shed``: how many by reason. Quantiles by the names of
    QUANTILES: of the answered in seconds, of refusals and health checks in ms; None where there was nothing.
    ``lag_ms``: how late the load generator was at most.
    """

    multiple: float
    offered_per_s: float
    goodput_per_s: float
    requests: int
    answered: int
    shed: dict[str, int]
    latency_s: dict[str, float | None]
    refusal_ms: dict[str, float | None]
    health_ms: dict[str, float | None]
    unhealthy: int
    rss_mib: int
    lag_ms: float


@dataclass(frozen=True)
class Scenario:
    """One kind of request. ``capacity_per_s`` is that of the closed loop, ``idle_mib`` resident before any request."""

    name: str
    deadline_s: float
    capacity_per_s: float
    idle_mib: int
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class Result:
    """Everything measured, and on what."""

    cpu: str
    models: tuple[str, ...]
    seconds: float
    scenarios: tuple[Scenario, ...]


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Of each of QUANTILES, the smallest value that so large a part of ``values`` does not exceed; None of nothing."""
    ordered = sorted(values)
    return {
        name: ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None
        for name, part in QUANTILES.items()
    }


def as_json(result: Result) -> dict[str, Any]:
    """With three decimals: more would only look exact."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 3)
        if isinstance(value, dict):
            return {name: rounded(each) for name, each in value.items()}
        return [rounded(each) for each in value] if isinstance(value, list | tuple) else value

    plain: dict[str, Any] = rounded(asdict(result))
    return plain


def line(phase: Phase) -> str:
    """One phase in a line of a terminal."""
    latency, refusal, health = phase.latency_s["p95"], phase.refusal_ms["p99"], phase.health_ms["max"]
    return (
        f"  {phase.multiple:g}x: {phase.answered}/{phase.requests} answered, {phase.goodput_per_s:.1f}/s,"
        f" p95 {number(latency)} s; shed {phase.shed}, refused in {number(refusal)} ms (p99);"
        f" health {number(health)} ms (max); {phase.rss_mib} MiB"
    )


def table(scenario: Scenario) -> str:
    """Markdown."""
    lines = [
        "| load | offered /s | goodput /s | answered | shed | latency s p50 / p95 / p99"
        " | refusal ms p50 / p99 / max | health ms p50 / p99 / max | resident MiB |",
        "|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for phase in scenario.phases:
        shed = ", ".join(f"{count} {reason}" for reason, count in phase.shed.items()) or "none"
        lines.append(
            f"| {phase.multiple:g}x | {phase.offered_per_s:.1f} | {phase.goodput_per_s:.1f}"
            f" | {phase.answered} of {phase.requests} | {shed}"
            f" | {numbers(phase.latency_s, 'p50', 'p95', 'p99')} | {numbers(phase.refusal_ms, 'p50', 'p99', 'max')}"
            f" | {numbers(phase.health_ms, 'p50', 'p99', 'max')} | {phase.rss_mib} |"
        )
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Two or three digits of it."""
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def numbers(values: dict[str, float | None], *names: str) -> str:
    """Those with these names."""
    return " / ".join(number(values[name]) for name in names)


def document(result: Result) -> str:
    """The tables, how to read them and how to repeat them."""
    parts = [
        f"""# Load

Requests arrive by themselves (a Poisson process, {result.seconds:g} s each) at multiples of the capacity, which
{_LOOP} measures before. Callers do not try again, and wait twice as long as those
of the loop had to. Server and load generator share the machine: {result.cpu}.
Models: {", ".join(result.models)}; no verdict cache.

![goodput, latency and refusals by load](load.svg)
"""
    ]
    for scenario in result.scenarios:
        slowest = max(phase.lag_ms for phase in scenario.phases)
        unhealthy = sum(phase.unhealthy for phase in scenario.phases)
        parts.append(
            f"""## {scenario.name}

Capacity {scenario.capacity_per_s:.1f} a second; callers wait {scenario.deadline_s:.1f} s; {scenario.idle_mib} MiB
resident before.

{table(scenario)}

Health checks that did not say SERVING: {unhealthy}. The load generator was {slowest:.0f} ms late at most.
"""
        )
    parts.append(
        """## How to read it

Goodput counts answers within the callers' deadline. Shed are QUEUE_FULL (no room: requests, bytes or tokens),
"DEADLINE, by estimate" (what waits already would make the answer too late, so it is refused before any work), and late
ones: DEADLINE (the server ended it) and "late" (the caller's clock was first). Refusal times are those of the first
two, at the caller.

Repeat: `make bench-load`
"""
    )
    return "\n".join(parts)


_LOOP = "a closed loop of 16 callers"


def figure(result: Result) -> str:
    """SVG: goodput by load, and the latency of the answered; loads in multiples of the capacity."""
    panels = []
    for scenario in result.scenarios:
        loads = [(phase.multiple, phase) for phase in scenario.phases]
        goodput = [(load, phase.goodput_per_s / scenario.capacity_per_s) for load, phase in loads]
        panels.append(
            Panel(
                f"{scenario.name}: goodput / capacity",
                "load / capacity",
                [Line("goodput", "#1f77b4", goodput), Line("capacity", "#999", [(load, 1.0) for load, _ in loads])],
            )
        )
        latency = [
            Line(name, color, [(load, phase.latency_s[name] or 0.0) for load, phase in loads])
            for name, color in (("p99", "#c0392b"), ("p95", "#e67e22"), ("p50", "#1f77b4"))
        ]
        panels.append(Panel(f"{scenario.name}: seconds to an answer", "load / capacity", latency))
    return chart("More work than can be done", panels)
