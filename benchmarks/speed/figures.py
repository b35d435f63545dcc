"""Bars side by side, and lines from benchmarks.chart: throughput, latency and cost of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.chart import Line, Panel, chart
from benchmarks.speed.reach import medians

_COLORS = ("#0b6e4f", "#c1440e", "#2b59c3")
_OURS_COLOR, _PEER_COLOR = "#0b6e4f", "#9aa5b1"
_WIDTH, _NAMES, _BAR, _TITLE = 420, 150, 18, 34
_BARS = (
    ("guard", "classify 40, warm", "Classify, 40 tokens, warm"),
    ("guard", "classify 400, warm", "Classify, 400 tokens, warm"),
    ("instruct", "prefill 512", "Prefill, 512 tokens"),
    ("instruct", "decode, 1 at once", "Decode, 32 tokens"),
)


def figures(results: Mapping[str, Any]) -> dict[str, str]:
    """File name to SVG, of what was measured."""
    found = {}
    groups = [(title, medians(results.get(part, {}), workload)) for part, workload, title in _BARS]
    if any(values for _, values in groups):
        found["speed.svg"] = bars("Milliseconds, 1B shape: less is better", [group for group in groups if group[1]])
    services = results.get("service", [])
    if services:
        found["speed-service.svg"] = chart("Classify over gRPC", _service_panels(services))
    return found


def bars(title: str, groups: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Horizontal bars, a group below the other, each group to its own scale; ours in colour, fastest first."""
    parts, y = [], 48.0
    for name, values in groups:
        parts.append(_text(12, y, name, size=13))
        y += 10
        most = max(values.values())
        for engine, value in sorted(values.items(), key=lambda pair: pair[1]):
            color = _OURS_COLOR if engine.startswith("Guardlet") else _PEER_COLOR
            width = _WIDTH * value / most
            parts.append(_text(_NAMES, y + 13, engine, anchor="end"))
            parts.append(f'<rect x="{_NAMES + 8}" y="{y}" width="{width:.1f}" height="{_BAR - 4}" fill="{color}"/>')
            parts.append(_text(_NAMES + 14 + width, y + 12, f"{value:,.0f}"))
            y += _BAR
        y += _TITLE
    width = _NAMES + _WIDTH + 80
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y:.0f}" font-family="sans-serif">',
        f'<rect width="{width}" height="{y:.0f}" fill="white"/>',
        _text(width / 2, 22, title, anchor="middle", size=16),
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _service_panels(services: Sequence[Mapping[str, Any]]) -> list[Panel]:
    def lines(rows: str, x: str, y: str) -> list[Line]:
        return [
            Line(each["bundle"], color, [(row[x], _number(row[y])) for row in each[rows]])
            for each, color in zip(services, _COLORS, strict=False)
        ]

    return [
        Panel("answers a second", "callers", lines("callers", "callers", "per_s")),
        Panel("latency, ms", "callers", lines("callers", "callers", "latency_ms")),
        Panel("ms by length of the text", "tokens", lines("lengths", "tokens", "ms")),
    ]


def _number(value: Any) -> float:
    return float(value["median"] if isinstance(value, Mapping) else value)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222">{escape(text)}</text>'
