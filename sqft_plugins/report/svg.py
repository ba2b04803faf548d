"""What the charts are drawn with: scales, axes and a frame that a screen reader can read.

Colours are classes of style.py, so that one picture serves light, dark and print; texts are texts, to be selected and
searched. Coordinates are CSS pixels at the picture's natural width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqft_plugins.report.html import Markup, tag

GUTTER = 6
"""Pixels between a tick and its label."""


@dataclass(frozen=True)
class Scale:
    """low..high → start..end in pixels; `log` where ratios are what counts."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (at - low) / ((high - low) or 1)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round numbers within the scale."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
            return [value for value in found if self.low <= value <= self.high]
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def spanning(
    values: Sequence[float], start: float, end: float, *, zero: bool = False, log: bool = False, room: float = 0.06
) -> Scale:
    """A scale that holds the values with a little room. zero: it begins at 0."""
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.25, high * 1.25, start, end, log=True)
    if zero:
        return Scale(0.0, high * (1 + room) or 1.0, start, end)
    margin = (high - low) * room or abs(high) * 0.1 or 1.0
    return Scale(low - margin, high + margin, start, end)


def number(value: float) -> str:
    """A tick's label: 0.05, 12, 1.5k, 5.6M."""
    for size, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if sign == 'k' else size):.4g}{sign}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def picture(width: float, height: float, title: str, description: str, *children: object) -> Markup:
    """The frame. title, description: read out in place of the picture, and the title shown by the pointer."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=f"{title}. {description}",
    )


def label(x: float, y: float, content: object, anchor: str = "start", kind: str | None = None) -> Markup:
    return tag("text", content, x=float(x), y=float(y), text_anchor=None if anchor == "start" else anchor, class_=kind)


def line(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Through the points; a point that is not finite breaks it."""
    path, pen = [], "M"
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            path.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return tag("path", d="".join(path), class_=kind)


def stroke(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def x_axis(scale: Scale, y: float, title: str | None, *, grid_to: float | None = None, ticks: int = 6) -> Markup:
    """Along the bottom at `y`, with lines up to `grid_to`. The title stands below."""
    parts = []
    for value in scale.ticks(ticks):
        x = scale(value)
        if grid_to is not None:
            parts.append(stroke(x, y, x, grid_to, "grid"))
        parts.append(label(x, y + 10 + GUTTER, number(value), "middle", "tick"))
    parts.append(stroke(scale.start, y, scale.end, y, "axis"))
    if title:
        parts.append(label((scale.start + scale.end) / 2, y + 34, title, "middle", "name"))
    return tag("g", parts)


def y_axis(scale: Scale, x: float, title: str, *, grid_to: float, top: float, ticks: int = 5) -> Markup:
    """Along the left at `x`, with lines to `grid_to`. The title stands above, at `top`, to be read unturned."""
    parts = []
    for value in scale.ticks(ticks):
        y = scale(value)
        parts.append(stroke(x, y, grid_to, y, "grid"))
        parts.append(label(x - GUTTER, y + 4, number(value), "end", "tick"))
    parts.append(label(0, top, title, kind="name"))
    return tag("g", parts)


def apart(places: Sequence[float], distance: float) -> list[float]:
    """The places, moved as little as needed so that labels at them do not overlap."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [float(place) for place in places]
    for _ in range(20):
        for below, above in pairwise(order):
            lack = distance - (moved[above] - moved[below])
            if lack > 0:
                moved[below] -= lack / 2
                moved[above] += lack / 2
    return moved


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(factor * magnitude for factor in (1, 2, 5, 10) if rough <= factor * magnitude * 1.0001)
