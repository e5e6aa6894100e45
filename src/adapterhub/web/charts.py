"""Small drawings of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from .formats import count, decimal

__all__ = ["Point", "scatter", "sparkline"]


class Point(NamedTuple):
    """An adapter in the plot of scores against sizes."""

    name: str
    parameters: int
    score: float


def sparkline(values: Sequence[int]) -> Markup:
    """Bars, one for each day."""
    top = max(max(values, default=0), 1)
    bars = "".join(
        f'<rect x="{index * 6}" y="{round(40 - 38 * value / top, 1)}" width="4" '
        f'height="{round(38 * value / top, 1)}" rx="1" fill="currentColor"/>'
        for index, value in enumerate(values)
        if value
    )
    words = f"Downloads a day over {len(values)} days, at most {max(values, default=0)}"
    return Markup(
        f'<svg class="spark" viewBox="0 0 {6 * len(values)} 40" preserveAspectRatio="none" role="img">'
        f'<title>{words}</title><path d="M0 39.5h{6 * len(values)}" stroke="currentColor" opacity=".35"/>{bars}</svg>'
    )


_LEFT, _TOP, _WIDTH, _HEIGHT = 56, 34, 880, 260


def scatter(points: Sequence[Point], metric: str, *, higher_is_better: bool = True) -> Markup:
    """Scores against numbers of parameters, with a line of the best at each size."""
    points = [point for point in points if point.parameters > 0 and math.isfinite(point.score)]
    if len(points) < 2:
        return Markup("")
    logs, scores = [math.log10(p.parameters) for p in points], [p.score for p in points]
    x_axis, y_axis = _range(logs, 0.15), _range(scores, 0.02 * max(map(abs, scores)))

    def x(point: Point) -> float:
        return round(_LEFT + _WIDTH * _share(math.log10(point.parameters), x_axis), 1)

    def y(point: Point) -> float:
        return round(_TOP + _HEIGHT * (1 - _share(point.score, y_axis)), 1)

    ordered = sorted(points, key=lambda p: (p.parameters, -p.score if higher_is_better else p.score))
    front: list[Point] = []
    for point in ordered:
        if not front or ((point.score > front[-1].score) == higher_is_better and point.score != front[-1].score):
            front.append(point)
    steps = "".join(f"H{x(point)}V{y(point)}" for point in front[1:])
    line = f"M{x(front[0])} {y(front[0])}{steps}H{_LEFT + _WIDTH}"
    names = "".join(_label(p.name.rpartition("/")[2], x(p), y(p) - 9) for p in front[-6:])
    dots = "".join(
        f'<a href="/{escape(p.name)}"><circle class="point" cx="{x(p)}" cy="{y(p)}" r="6"/>'
        f"<title>{escape(p.name)}: {decimal(p.score)}, {count(p.parameters)} parameters</title></a>"
        for p in points
    )
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_LEFT + _WIDTH + 14} {_TOP + _HEIGHT + 46}" role="group" '
        f'aria-label="{escape(metric)} against number of parameters">{_axes(x_axis, y_axis, metric)}'
        f'<path class="front" d="{line}"/>{dots}{names}</svg>'
    )


def _label(text: str, x: float, y: float) -> str:
    """A name beside its point, on the side where there is more room."""
    is_left = x < _LEFT + _WIDTH / 2
    anchor = "" if is_left else ' text-anchor="end"'
    return f'<text x="{x + 10 if is_left else x - 10:g}" y="{y:g}"{anchor}>{escape(text)}</text>'


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    margin = margin or 1.0
    return min(values) - margin, max(values) + margin


def _share(value: float, axis: tuple[float, float]) -> float:
    return (value - axis[0]) / (axis[1] - axis[0])


def _axes(x_axis: tuple[float, float], y_axis: tuple[float, float], metric: str) -> str:
    bottom = _TOP + _HEIGHT
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{_LEFT + _WIDTH}" fill="none"/>']
    for step in range(5):
        value = y_axis[0] + (y_axis[1] - y_axis[0]) * step / 4
        y = bottom - _HEIGHT * step / 4
        parts.append(f'<path class="grid-line" d="M{_LEFT} {y:g}h{_WIDTH}"/>' if step else "")
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:g}" text-anchor="end">{value:.3g}</text>')
    for step in range(5):
        value = x_axis[0] + (x_axis[1] - x_axis[0]) * step / 4
        x = _LEFT + _WIDTH * step / 4
        parts.append(f'<text x="{x:g}" y="{bottom + 20}" text-anchor="middle">{count(round(10**value))}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{bottom + 40}" text-anchor="end">parameters (log)</text>')
    parts.append(f'<text x="0" y="14">{escape(metric)}</text>')
    return "".join(parts)
