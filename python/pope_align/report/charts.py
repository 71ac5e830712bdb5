"""Small pictures as SVG: they take the page's colours, in light and dark, and say in words what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

#: Colours by class, set by the page's style: the first policy is the baseline.
_SERIES = 6


class Interval(NamedTuple):
    """A number and how sure it is; one that was refused is drawn dashed."""

    value: float
    low: float
    high: float
    refused: bool = False


class Scale(NamedTuple):
    """A line from data to pixels."""

    least: float
    most: float
    start: float
    end: float

    def __call__(self, number: float) -> float:
        return self.start + (number - self.least) / (self.most - self.least) * (self.end - self.start)

    @classmethod
    def around(cls, numbers: Sequence[float], start: float, end: float) -> Scale:
        """With a margin; one number alone gets a unit around it."""
        finite = [number for number in numbers if math.isfinite(number)] or [0.0]
        least, most = min(finite), max(finite)
        margin = (most - least) * 0.08 or abs(most) * 0.1 or 0.5
        return cls(least - margin, most + margin, start, end)

    def ticks(self) -> list[float]:
        """Three to six round numbers."""
        step = 10 ** math.floor(math.log10(self.most - self.least))
        for finer in (1.0, 0.5, 0.2, 0.1):
            first = math.ceil(self.least / (step * finer))
            last = math.floor(self.most / (step * finer))
            if last - first >= 2:
                return [round(at * step * finer, 12) for at in range(first, last + 1)]
        return [self.least, self.most]


def whiskers(intervals: Sequence[Interval]) -> list[Markup]:
    """One strip for each interval, all on the scale of a table's column, with the line of zero."""
    ends = [end for each in intervals for end in (each.low, each.high, each.value) if math.isfinite(end)]
    scale = Scale.around([*ends, 0.0], 0, 100)
    return [_strip(each, scale) for each in intervals]


def _strip(each: Interval, scale: Scale) -> Markup:
    if not all(map(math.isfinite, each[:3])):
        return Markup("")
    low, high, value, zero = (round(scale(number), 2) for number in (each.low, each.high, each.value, 0.0))
    style = "refused" if each.refused else "believed"
    return Markup(
        f'<svg class="strip {style}" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="12"/>'
        f'<line class="range" x1="{low}" x2="{high}" y1="6" y2="6"/>'
        f'<line class="value" x1="{value}" x2="{value}" y1="2" y2="10"/></svg>'
    )


def plane(points: Sequence[tuple[str, Interval, Interval]], *, x: str, y: str) -> Markup:
    """Policies in the plane of two goals, with their intervals, and the band in which the front may lie.

    The band runs from the front of the lower ends of the intervals to that of the upper ends.

    Args:
        points: name, place along ``x``, place along ``y``.
    """
    width, height, left, bottom = 360, 250, 46, 34
    xs = Scale.around([n for _, a, _ in points for n in a[:3]], left, width - 8)
    ys = Scale.around([n for _, _, b in points for n in b[:3]], height - bottom, 8)
    parts = [_axes(xs, ys, x, y, width, height)]
    lower = _stairs([(a.low, b.low) for _, a, b in points], xs, ys)
    upper = _stairs([(a.high, b.high) for _, a, b in points], xs, ys)
    parts.append(f'<path class="band" d="M{" L".join([*upper, *reversed(lower)])} Z"/>')
    for index, (name, a, b) in enumerate(points):
        across, up = xs(a.value), ys(b.value)
        parts.append(
            f'<g class="s{index % _SERIES}">'
            f'<line x1="{xs(a.low):.1f}" x2="{xs(a.high):.1f}" y1="{up:.1f}" y2="{up:.1f}"/>'
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{ys(b.low):.1f}" y2="{ys(b.high):.1f}"/>'
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4"/></g>'
            f'<text x="{min(across + 7, width - 60):.1f}" y="{up - 7:.1f}">{escape(name)}</text>'
        )
    told = "; ".join(f"{name}: {x} {a.value:.3g}, {y} {b.value:.3g}" for name, a, b in points)
    return _svg(parts, width, height, f"{y} against {x}. {told}")


def _stairs(points: Sequence[tuple[float, float]], xs: Scale, ys: Scale) -> list[str]:
    """Corners of the region that the points dominate, from the upper left to the lower right."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: (-each[0], -each[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    corners = [(xs.least, best[-1][1])]
    for across, up in reversed(best):
        corners += [(across, corners[-1][1]), (across, up)] if corners[-1][1] != up else [(across, up)]
        following = [other for other in best if other[0] > across]
        corners.append((across, max((other[1] for other in following), default=ys.least)))
    return [f"{xs(across):.1f},{ys(up):.1f}" for across, up in corners]


def curves(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, x: str, y: str) -> Markup:
    """Lines over steps.

    Args:
        series: name and points.
    """
    width, height = 360, 200
    finite = [(name, [p for p in points if all(map(math.isfinite, p))]) for name, points in series]
    drawn = [(at, name, points) for at, (name, points) in enumerate(finite) if points]
    if not drawn:
        return Markup("")
    xs = Scale.around([a for *_, points in drawn for a, _ in points], 46, width - 8)
    ys = Scale.around([b for *_, points in drawn for _, b in points], height - 34, 8)
    parts = [_axes(xs, ys, x, y, width, height)]
    for index, _, points in drawn:
        path = " ".join(f"{xs(a):.1f},{ys(b):.1f}" for a, b in points)
        parts.append(f'<g class="s{index % _SERIES}"><polyline points="{path}"/></g>')
    told = "; ".join(f"{name}: from {points[0][1]:.3g} to {points[-1][1]:.3g}" for _, name, points in drawn)
    return _svg(parts, width, height, f"{y} over {x}. {told}")


def _axes(xs: Scale, ys: Scale, x: str, y: str, width: int, height: int) -> str:
    lines = []
    for tick in xs.ticks():
        lines.append(f'<line class="grid" x1="{xs(tick):.1f}" x2="{xs(tick):.1f}" y1="{ys.end}" y2="{ys.start}"/>')
        lines.append(f'<text class="tick" text-anchor="middle" x="{xs(tick):.1f}" y="{ys.start + 13}">{tick:g}</text>')
    for tick in ys.ticks():
        lines.append(f'<line class="grid" x1="{xs.start}" x2="{xs.end}" y1="{ys(tick):.1f}" y2="{ys(tick):.1f}"/>')
        lines.append(f'<text class="tick" text-anchor="end" x="{xs.start - 4}" y="{ys(tick) + 4:.1f}">{tick:g}</text>')
    middle = (xs.start + xs.end) / 2
    lines.append(f'<text class="axis" text-anchor="middle" x="{middle:.0f}" y="{height - 4}">{escape(x)}</text>')
    lines.append(
        f'<text class="axis" text-anchor="middle" transform="translate(11 {(ys.start + ys.end) / 2:.0f}) rotate(-90)">'
        f"{escape(y)}</text>"
    )
    return "".join(lines)


def _svg(parts: Sequence[str], width: int, height: int, told: str) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(told)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
