"""Small SVG plots with nothing outside themselves: titled for screen readers, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Point = tuple[float, float]
#: Three plots stand beside each other in the page's width.
_WIDTH, _HEIGHT = 340, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 44
_BAR_HEIGHT, _BAR_NAME, _BAR_WIDTH = 22, 190, 640


def curve(
    title: str, x: str, y: str, points: Sequence[Point], *, dots: Sequence[Point] = (), diagonal: bool = False
) -> str:
    """A line through ``points`` (both axes 0..1) and ``dots`` on it; ``diagonal`` draws where x = y."""
    parts = [_frame(x, y)]
    if diagonal:
        parts.append(f'<line class="guide" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    path = " ".join(f"{_x(a)},{_y(b)}" for a, b in points)
    parts.append(f'<polyline class="line" points="{path}"/>')
    parts += [f'<circle class="dot" cx="{_x(a)}" cy="{_y(b)}" r="4"/>' for a, b in dots]
    return _svg(title, _WIDTH, _HEIGHT, parts)


def histogram(title: str, x: str, edges: Sequence[float], series: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Bars side by side for each of ``series`` (name, counts), as shares of that series."""
    shares = [(name, [count / max(1, sum(counts)) for count in counts]) for name, counts in series]
    highest = max((share for _, values in shares for share in values), default=0.0) or 1.0
    highest = math.ceil(highest * 25) / 25  # so that the four steps of the axis are whole percentages
    parts = [_frame(x, "share of rows", lambda step: f"{step * highest:.0%}")]
    for order, (name, values) in enumerate(shares):
        for low, high, share in zip(edges, edges[1:], values, strict=False):
            width = (high - low) * 0.9 / len(shares)
            left = low + (high - low) * 0.05 + order * width
            top, bottom = _y(share / highest), _y(0)
            parts.append(
                f'<rect class="{escape(name)}" x="{_x(left)}" y="{top}" width="{_x(left + width) - _x(left):.1f}"'
                f' height="{bottom - top:.1f}"/>'
            )
        parts.append(_key(order, name))
    return _svg(title, _WIDTH, _HEIGHT, parts)


def bars(title: str, rows: Sequence[tuple[str, float | None, tuple[float, float] | None]]) -> str:
    """A horizontal bar (0..1) with its interval for each (name, value, interval)."""
    parts = []
    scale = _BAR_WIDTH - _BAR_NAME - 60
    for index, (name, value, interval) in enumerate(rows):
        middle = index * _BAR_HEIGHT + _BAR_HEIGHT / 2
        parts.append(f'<text x="{_BAR_NAME - 8}" y="{middle + 4}" text-anchor="end">{escape(name[:28])}</text>')
        if value is None:
            parts.append(f'<text x="{_BAR_NAME}" y="{middle + 4}">not defined</text>')
            continue
        width = f"{value * scale:.1f}"
        parts.append(f'<rect class="bar" x="{_BAR_NAME}" y="{middle - 7}" width="{width}" height="14"/>')
        if interval is not None:
            low, high = (_BAR_NAME + bound * scale for bound in interval)
            parts.append(f'<line class="whisker" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>')
        parts.append(f'<text x="{_BAR_WIDTH - 52}" y="{middle + 4}">{value:.3f}</text>')
    return _svg(title, _BAR_WIDTH, max(1, len(rows)) * _BAR_HEIGHT, parts)


def _svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    label = escape(title)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{label}</title>{''.join(parts)}</svg>"
    )


def _frame(x: str, y: str, height: Callable[[float], str] = "{:g}".format) -> str:
    """Grid, numbers (``height`` writes those of the y axis, from 0..1) and names of both axes."""
    ticks = []
    for step in (0.0, 0.25, 0.5, 0.75, 1.0):
        ticks.append(f'<line class="grid" x1="{_x(step)}" y1="{_y(0)}" x2="{_x(step)}" y2="{_y(1)}"/>')
        ticks.append(f'<line class="grid" x1="{_x(0)}" y1="{_y(step)}" x2="{_x(1)}" y2="{_y(step)}"/>')
        ticks.append(f'<text x="{_x(step)}" y="{_HEIGHT - 26}" text-anchor="middle">{step:g}</text>')
        ticks.append(f'<text x="{_LEFT - 6}" y="{_y(step) + 4}" text-anchor="end">{height(step)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        "".join(ticks)
        + f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
        + f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )


def _key(order: int, name: str) -> str:
    left = _LEFT + 60 + order * 90
    return (
        f'<rect class="{escape(name)}" x="{left}" y="{_TOP + 4}" width="12" height="12"/>'
        f'<text x="{left + 18}" y="{_TOP + 14}">{escape(name)}</text>'
    )


def _x(value: float) -> float:
    return round(_LEFT + value * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(value: float) -> float:
    return round(_HEIGHT - _BOTTOM - value * (_HEIGHT - _TOP - _BOTTOM), 1)
