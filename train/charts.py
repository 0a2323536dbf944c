"""Plots as SVG, whose colours and fonts are the page's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.markup import escape, percent

if TYPE_CHECKING:
    from train.evaluate import Calibration

_LEFT, _TOP, _WIDTH, _HEIGHT, _RIGHT = 44, 8, 390, 190, 8  # of a plot's frame and the room around it, in SVG's pixels


@dataclass(frozen=True)
class Line:
    """Points (x, y) of a curve; `name` is its colour's class in the page's style."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A range of values and where its ticks stand: (value, text) each."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def place(self, value: float) -> float:
        """How far along the axis, from 0 to 1."""
        return (value - self.low) / ((self.high - self.low) or 1.0)


def even(low: float, high: float, text: Callable[[float], str], parts: int = 4) -> Axis:
    """An axis with evenly spaced ticks."""
    values = [low + (high - low) * i / parts for i in range(parts + 1)]
    return Axis(low, high, [(value, text(value)) for value in values])


def around(low: float, high: float, text: Callable[[float], str]) -> Axis:
    """An axis that holds `low` and `high`, with ticks at round numbers: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s for s in (power / 5, power / 2, power, power * 2) if span <= 5 * s)
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step + 1e-9) + 1)
    return Axis(first * step, last * step, [(i * step, text(i * step)) for i in range(first, last + 1)])


def lines(title: str, x: Axis, y: Axis, curves: Sequence[Line], mark: tuple[float, float] | None = None) -> str:
    """Curves over one another; `mark` puts a ring around a point. Values that are not finite break no line: they
    are left out, and a curve of a single point is a dot."""
    drawn = ""
    for curve in curves:
        places = [_place(x, y, point) for point in curve.points if all(map(math.isfinite, point))]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        drawn += f'<polyline class="{curve.name}" points="{path}"/>'
        if len(places) == 1:
            drawn += f'<circle class="{curve.name}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="2.5"/>'
    if mark is not None:
        across, down = _place(x, y, mark)
        drawn += f'<circle class="mark" cx="{across:.1f}" cy="{down:.1f}" r="5"/>'
    return _figure(title, _frame(x, y) + drawn)


def reliability(title: str, calibration: Calibration) -> str:
    """The reliability diagram: for each bin of the top-1 probability the share that was right, in other colours what
    it lacks of the mean probability or has above it; underneath how many images the bin holds."""
    share = even(0, 1, "{:.0%}".format)
    bins, most = len(calibration.counts), int(calibration.counts.max())
    width, floor, strip = _WIDTH / bins, _TOP + _HEIGHT + 26, 34
    drawn = ""
    columns = zip(calibration.counts, calibration.accuracy, calibration.confidence, strict=True)
    for b, (count, accuracy, confidence) in enumerate(columns):
        if not count:
            continue
        left = _LEFT + b * width
        low, high = sorted((accuracy, confidence))
        gap = "less" if accuracy < confidence else "more"
        drawn += (
            f"<g><title>{count:,} images with a probability of {b / bins:.0%} to {(b + 1) / bins:.0%}, "
            f"{percent(confidence)} on average: {percent(accuracy)} are right</title>"
            + _bar("bar", left, width, _TOP + _HEIGHT, low * _HEIGHT)
            + _bar(gap, left, width, _TOP + (1 - low) * _HEIGHT, (high - low) * _HEIGHT)
            + _bar("bar", left, width, floor + strip, count / most * strip)
            + "</g>"
        )
    drawn += f'<line class="ideal" x1="{_LEFT}" y1="{_TOP + _HEIGHT}" x2="{_LEFT + _WIDTH}" y2="{_TOP}"/>'
    drawn += f'<text x="{_LEFT - 5}" y="{floor + 9}" text-anchor="end">{most:,}</text>'
    drawn += f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{floor + strip}" y2="{floor + strip}"/>'
    return _figure(title, _frame(share, share) + drawn, below=strip + 10)


def _frame(x: Axis, y: Axis) -> str:
    drawn = ""
    for value, text in y.ticks:
        down = _TOP + (1 - y.place(value)) * _HEIGHT
        drawn += f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{down:.1f}" y2="{down:.1f}"/>'
        drawn += f'<text x="{_LEFT - 5}" y="{down + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    for value, text in x.ticks:
        # Text at either end would stick out, were it centred there.
        anchor = {0.0: "start", 1.0: "end"}.get(x.place(value), "middle")
        across = _LEFT + x.place(value) * _WIDTH
        drawn += f'<text x="{across:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="{anchor}">{escape(text)}</text>'
    return drawn


def _place(x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
    return _LEFT + x.place(point[0]) * _WIDTH, _TOP + (1 - y.place(point[1])) * _HEIGHT


def _bar(name: str, left: float, width: float, bottom: float, height: float) -> str:
    return (
        f'<rect class="{name}" x="{left + 1:.1f}" y="{bottom - height:.1f}" width="{width - 2:.1f}" '
        f'height="{height:.1f}"/>'
    )


def _figure(title: str, drawn: str, below: float = 0) -> str:
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + 22 + below
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{drawn}</svg></figure>'
    )
