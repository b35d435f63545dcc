"""Line charts as SVG, by hand: a figure for the documents is not worth a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 360, 240, 70, 64, 40
_TICKS = 4
_STEPS = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class Line:
    """A named line through ``points`` (x, y), both from 0 on."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes, from 0 to the largest value."""

    title: str
    x_label: str
    lines: Sequence[Line]


def chart(title: str, panels: Sequence[Panel]) -> str:
    """Panels side by side, readable on light and dark pages."""
    width = len(panels) * (_LEFT + _WIDTH + _GAP)
    height = _TOP + _HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(width / 2, 22, title, anchor="middle", size=16),
    ]
    for index, panel in enumerate(panels):
        parts.append(f'<g transform="translate({index * (_LEFT + _WIDTH + _GAP) + _LEFT} {_TOP})">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> list[str]:
    right = _round_up(max(x for line in panel.lines for x, _ in line.points))
    top = _round_up(max(y for line in panel.lines for _, y in line.points))
    parts = [_text(_WIDTH / 2, -12, panel.title, anchor="middle", size=13)]
    for tick in range(_TICKS + 1):
        x, y = _WIDTH * tick / _TICKS, _HEIGHT * (1 - tick / _TICKS)
        parts.append(f'<path d="M0 {y:.1f}H{_WIDTH}" stroke="#ddd"/>')
        parts.append(_text(-8, y + 4, f"{top * tick / _TICKS:,g}", anchor="end"))
        parts.append(_text(x, _HEIGHT + 18, f"{right * tick / _TICKS:,g}", anchor="middle"))
    parts.append(_text(_WIDTH / 2, _HEIGHT + 40, panel.x_label, anchor="middle"))
    for index, line in enumerate(panel.lines):
        places = [(x / right * _WIDTH, _HEIGHT * (1 - y / top)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.color}"/>' for x, y in places]
        parts.append(_text(12, 18 + 18 * index, line.name, color=line.color))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, color: str = "#222") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{color}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _round_up(value: float) -> float:
    """The next of some numbers times a power of ten; quarters of them are short."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in _STEPS if step * power >= value)
