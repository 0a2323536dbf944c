"""Charts as SVG. Their colours and fonts are those of the page, `templates/page.css`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from train.report.text import percent

if TYPE_CHECKING:
    from train.report.evaluate import Calibration

# The frame of a chart and the margins around it, in pixels of the SVG.
_LEFT, _TOP, _WIDTH, _HEIGHT, _RIGHT = 44, 8, 390, 190, 8
_BOTTOM = _TOP + _HEIGHT

# `Markup.format` escapes what it fills in.
_FIGURE = Markup(
    '<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
    "{content}</svg></figure>"
)
_TEXT = Markup('<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')
_LINE = Markup('<line class="{name}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
_CURVE = Markup('<polyline class="{name}" points="{points}"/>')
_CIRCLE = Markup('<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')
_BAR = Markup('<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
_BIN = Markup("<g><title>{tip}</title>{bars}</g>")


@dataclass(frozen=True)
class Curve:
    """Points (x, y) joined by a line. `name` is the class in the page's style that gives it its colour."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A range of values, and its ticks: (value, text) each."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def place(self, value: float) -> float:
        """Where a value lies on the axis, from 0 to 1."""
        return (value - self.low) / ((self.high - self.low) or 1.0)


def even_axis(low: float, high: float, text: Callable[[float], str], parts: int = 4) -> Axis:
    """An axis with evenly spaced ticks; `text` formats their values."""
    values = [low + (high - low) * i / parts for i in range(parts + 1)]
    return Axis(low, high, [(value, text(value)) for value in values])


def round_axis(low: float, high: float, text: Callable[[float], str]) -> Axis:
    """An axis that holds `low` and `high`, with ticks at multiples of 1, 2 or 5 times a power of ten; `text` formats
    their values."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(step for step in (power / 5, power / 2, power, power * 2) if span <= 5 * step)
    # What is a multiple of the step but for rounding counts as one.
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return Axis(first * step, last * step, [(i * step, text(i * step)) for i in range(first, last + 1)])


def line_chart(
    title: str, x: Axis, y: Axis, *, curves: Sequence[Curve], mark: tuple[float, float] | None = None
) -> Markup:
    """Curves in one frame; `mark` is a point with a ring around it.

    Points that are not finite are left out, and the line goes on behind them. A curve of one point is a dot.
    """
    content = _frame(x, y)
    for curve in curves:
        places = [_place(x, y, point) for point in curve.points if all(map(math.isfinite, point))]
        points = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        content += _CURVE.format(name=curve.name, points=points)
        if len(places) == 1:
            content += _CIRCLE.format(name=curve.name, x=places[0][0], y=places[0][1], radius=2.5)
    if mark is not None:
        across, down = _place(x, y, mark)
        content += _CIRCLE.format(name="mark", x=across, y=down, radius=5)
    return _figure(title, content)


def reliability_diagram(title: str, calibration: Calibration) -> Markup:
    """The accuracy in each bin of the top-1 probability, and below it the number of photos in the bin.

    Where the accuracy is below the mean probability of the bin, the bar goes on to it in the colour `less`; where it
    is above, the part beyond the probability has the colour `more`.
    """
    axis = even_axis(0, 1, "{:.0%}".format)
    bins, largest = len(calibration.counts), int(calibration.counts.max())
    width = _WIDTH / bins
    histogram_top, histogram_height = _BOTTOM + 26, 34
    floor = histogram_top + histogram_height

    content = _frame(axis, axis)
    columns = zip(calibration.counts, calibration.accuracy, calibration.confidence, strict=True)
    for number, (count, accuracy, confidence) in enumerate(columns):
        if not count:
            continue
        left = _LEFT + number * width
        low, high = sorted((accuracy, confidence))
        bars = _bar("bar", left, width, bottom=_BOTTOM, height=low * _HEIGHT)
        gap = "less" if accuracy < confidence else "more"
        bars += _bar(gap, left, width, bottom=_BOTTOM - low * _HEIGHT, height=(high - low) * _HEIGHT)
        bars += _bar("bar", left, width, bottom=floor, height=count / largest * histogram_height)
        tip = (
            f"{count:,} photos with a probability of {number / bins:.0%} to {(number + 1) / bins:.0%}, "
            f"{percent(confidence)} on average: {percent(accuracy)} are right"
        )
        content += _BIN.format(tip=tip, bars=bars)
    content += _LINE.format(name="ideal", x1=_LEFT, x2=_LEFT + _WIDTH, y1=_BOTTOM, y2=_TOP)
    content += _TEXT.format(x=_LEFT - 5, y=histogram_top + 9, anchor="end", text=f"{largest:,}")
    content += _LINE.format(name="grid", x1=_LEFT, x2=_LEFT + _WIDTH, y1=floor, y2=floor)
    return _figure(title, content, below=histogram_height + 10)


def _frame(x: Axis, y: Axis) -> Markup:
    """The horizontal grid lines, and the text of all ticks."""
    content = Markup()
    for value, text in y.ticks:
        _, down = _place(x, y, (x.low, value))
        content += _LINE.format(name="grid", x1=_LEFT, x2=_LEFT + _WIDTH, y1=down, y2=down)
        content += _TEXT.format(x=_LEFT - 5, y=down + 4, anchor="end", text=text)
    for value, text in x.ticks:
        # Centred at either end, the text would stick out of the chart.
        anchor = {0.0: "start", 1.0: "end"}.get(x.place(value), "middle")
        content += _TEXT.format(x=_LEFT + x.place(value) * _WIDTH, y=_BOTTOM + 16, anchor=anchor, text=text)
    return content


def _place(x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
    """A point's place in the SVG, from its left and from its top."""
    return _LEFT + x.place(point[0]) * _WIDTH, _TOP + (1 - y.place(point[1])) * _HEIGHT


def _bar(name: str, left: float, width: float, *, bottom: float, height: float) -> Markup:
    return _BAR.format(name=name, x=left + 1, y=bottom - height, width=width - 2, height=height)


def _figure(title: str, content: Markup, below: float = 0) -> Markup:
    """The chart as a whole; it is `below` pixels higher than its frame and the text of the ticks need."""
    return _FIGURE.format(title=title, content=content, width=_LEFT + _WIDTH + _RIGHT, height=_BOTTOM + 22 + below)
