"""The heads that a run chose among, as the report shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from train.report import charts
from train.report.charts import Axis, Curve
from train.report.tables import Cell, Row, Table
from train.report.text import percent

if TYPE_CHECKING:
    from train.solvers.problem import Trial

_FADED = 0.1  # of accuracy below the best head's: there the colour of a heat map ends
_MOST_TICKS = 7  # on the axis of L2 strengths: the texts of more would touch
_WEIGHTINGS = {"balanced": "classes weighted equally", "none": "photos weighted equally"}
_UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Search:
    """What the report shows of the heads: tables of them, and a chart where one number was varied."""

    has_validation: bool  # whether there were validation photos to choose by
    is_balanced: bool  # whether all cross entropies are means over classes, not photos
    tables: Sequence[Table]
    chart: Markup | None = None
    legend: Sequence[tuple[str, str]] = ()  # (class in the style, text) of each curve of the chart


def search(grid: Sequence[Trial]) -> Search:
    """The heads by learning rate and L2 strength if the learning rate was varied, else by L2 strength."""
    if any(trial.learning_rate is not None for trial in grid):
        tables, chart, legend = _heat_maps(grid), None, []
    else:
        tables, chart, legend = [_strengths_table(grid)], _strengths_chart(grid), _strengths_legend(grid)
    return Search(
        has_validation=any(trial.validation_accuracy is not None for trial in grid),
        is_balanced=_weightings(grid) == ["balanced"],
        tables=tables,
        chart=chart,
        legend=legend,
    )


def _heat_maps(grid: Sequence[Trial]) -> list[Table]:
    """A table of validation accuracies for each way of weighting: a row for each L2 strength, a column for each
    learning rate."""
    accuracies = _accuracies(grid)
    best, worst = max(accuracies, default=0.0), min(accuracies, default=0.0)
    span = min(_FADED, best - worst) or _FADED
    rates = sorted({trial.learning_rate for trial in grid if trial.learning_rate is not None})

    def cell(trial: Trial | None) -> Cell:
        if trial is None:
            return Cell("")
        accuracy = trial.validation_accuracy
        share = 0.0 if accuracy is None else max(0.0, 1 - (best - accuracy) / span)
        tip = f"cross entropy {_cross_entropy(trial)}"
        return Cell(_accuracy(trial), share, is_chosen=trial.chosen, tip=tip)

    tables = []
    for weighting in _weightings(grid):
        trials = {(trial.l2, trial.learning_rate): trial for trial in grid if trial.class_weights == weighting}
        rows = [
            Row(f"L2 {l2:.2g}", [cell(trials.get((l2, rate))) for rate in rates])
            for l2 in sorted({trial.l2 for trial in grid})
        ]
        columns = [f"{rate:g}" for rate in rates]
        tables.append(Table(columns, rows, corner="learning rate", title=_weighting(weighting)))
    return tables


def _strengths_chart(grid: Sequence[Trial]) -> Markup | None:
    """The validation accuracy over the L2 strengths, which are evenly spaced on the axis whatever their values."""
    accuracies = _accuracies(grid)
    if not accuracies:
        return None
    strengths = sorted({trial.l2 for trial in grid})

    def point(trial: Trial) -> tuple[float, float]:
        return strengths.index(trial.l2), trial.validation_accuracy or 0.0

    every = math.ceil(len(strengths) / _MOST_TICKS)
    ticks = [(place, f"{strengths[place]:.2g}") for place in range(0, len(strengths), every)]
    curves = []
    for weighting, colour in _colours(grid).items():
        trials = [t for t in grid if t.class_weights == weighting and t.validation_accuracy is not None]
        curves.append(Curve(colour, [point(trial) for trial in sorted(trials, key=lambda trial: trial.l2)]))
    return charts.line_chart(
        "Validation accuracy by L2 strength",
        Axis(0, len(strengths) - 1, ticks),
        charts.round_axis(min(accuracies), max(accuracies), lambda share: f"{100 * share:.4g}%"),
        curves=curves,
        mark=next((point(trial) for trial in grid if trial.chosen), None),
    )


def _strengths_table(grid: Sequence[Trial]) -> Table:
    has_several = len(_weightings(grid)) > 1
    rows = []
    for trial in sorted(grid, key=lambda trial: (trial.class_weights, trial.l2)):
        strength = f"L2 {trial.l2:.2g}"
        name = f"{strength}, {_weighting(trial.class_weights)}" if has_several else strength
        rows.append(Row(name, [Cell(_accuracy(trial), is_chosen=trial.chosen), Cell(_cross_entropy(trial))]))
    return Table(["validation accuracy", "cross entropy"], rows, corner="strength")


def _strengths_legend(grid: Sequence[Trial]) -> list[tuple[str, str]]:
    colours = _colours(grid)
    return [(colour, _weighting(name)) for name, colour in colours.items()] if len(colours) > 1 else []


def _colours(grid: Sequence[Trial]) -> dict[str, str]:
    """The colour, a class in the style, of each way of weighting."""
    return dict(zip(_weightings(grid), ("second", "first"), strict=False))


def _accuracies(grid: Sequence[Trial]) -> list[float]:
    return [trial.validation_accuracy for trial in grid if trial.validation_accuracy is not None]


def _weightings(grid: Sequence[Trial]) -> list[str]:
    return sorted({trial.class_weights for trial in grid})


def _weighting(name: str) -> str:
    return _WEIGHTINGS.get(name, name)


def _accuracy(trial: Trial) -> str:
    if trial.validation_cross_entropy is not None and not math.isfinite(trial.validation_cross_entropy):
        return "diverged"
    return _UNKNOWN if trial.validation_accuracy is None else percent(trial.validation_accuracy)


def _cross_entropy(trial: Trial) -> str:
    value = trial.validation_cross_entropy
    if value is None:
        return _UNKNOWN
    return f"{value:.4f}" if math.isfinite(value) else "diverged"
