"""`report.html`: one file that shows how good the classifier is, and loads nothing from anywhere.

The functions turn a result into plain data. `templates/page.html.j2` is the page: its sections, their texts, and where
the data stand in them.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from cache.text import printable
from train.report import charts
from train.report.charts import Axis, Curve
from train.report.search import search
from train.report.tables import MATRIX, Cell, Row, Table
from train.report.text import percent

if TYPE_CHECKING:
    import jinja2
    import numpy as np

    from cache.calibration import Calibration
    from cache.reader import Cache
    from train.report.evaluate import Evaluation
    from train.result import Result

MISTAKES = 25  # that the page shows
CONFUSIONS = 30  # the most frequent ones, which the page shows where there are too many classes for the matrix
POINTS = 400  # of a curve: more would not be seen


@dataclass(frozen=True)
class Curves:
    """The learning curves, and from which iteration on the validation photos are fitted on."""

    accuracy: Markup
    cross_entropy: Markup
    legend: Sequence[tuple[str, str]]  # (class in the style, text) of each curve
    refit_step: int | None


@dataclass(frozen=True)
class Mistake:
    """A misclassified test photo."""

    label: str
    predicted: str
    probability: float  # of the predicted label
    path: str
    picture: str | None  # a JPEG file in base64


@dataclass(frozen=True)
class TestResults:
    """What the page shows of the test photos."""

    accuracy: float
    confusion_matrix: Table | None  # None: there are too many classes
    confusions: Sequence[tuple[str, str, str]]  # true class, predicted class, photos
    classes: Table
    calibration: Calibration
    reliability_diagram: Markup
    mistakes: Sequence[Mistake]  # the most confident ones
    mistake_count: int

    @property
    def has_pictures(self) -> bool:
        """Whether there is a picture of any mistake: if not, the page leaves no room for them."""
        return any(mistake.picture for mistake in self.mistakes)


def html(result: Result) -> str:
    """The report as one HTML page, with its pictures and style inside.

    Raises CacheError if mistakes are to be shown, and the cache's backbone is damaged.
    """
    test = result.test
    return _template().render(
        title=f"Final test accuracy {percent(test.accuracy)}" if test else "No test photos",
        class_count=len(result.cache.labels),
        photo_counts=dict(zip(("train", "validation", "test"), result.counts, strict=True)),
        backbone=result.cache.backbone,
        how_fitted=result.how_fitted,
        seconds=result.seconds,
        facts=_facts(result),
        curves=_curves(result),
        search=search(result.grid) if result.grid else None,
        test=_test(test, result.cache) if test else None,
        calibrated=result.calibrated,
        exports=_exports(result.exports),
        settings=_settings(result),
    )


@functools.cache
def _template() -> jinja2.Template:
    import jinja2  # here, because most commands write no report, and start the faster

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("train.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_as_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, thousands="{:,}".format)
    return environment.get_template("page.html.j2")


def _as_text(value: Any) -> Any:
    """A value as the template writes it, before it is escaped: labels and paths may hold any bytes.

    Text that a filter has joined to markup would pass unchanged, so the template has no such filter.
    """
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _facts(result: Result) -> list[tuple[str, str]]:
    """The numbers that one looks for first, with their names."""
    facts = []
    if result.test is not None:
        facts += [
            ("test photos", f"{result.test.count:,}"),
            ("test cross entropy", f"{result.test.cross_entropy:.3f}"),
            ("calibration error", percent(result.test.calibration.error)),
        ]
    if result.validation is not None:
        name = "validation accuracy before the refit" if result.is_refitted else "validation accuracy"
        facts.append((name, percent(result.validation.accuracy)))
    return facts


def _curves(result: Result) -> Curves | None:
    if not result.curve:
        return None
    is_lbfgs = result.settings.solver == "lbfgs"
    # Counted from the last point backwards: the curve ends where the training ended.
    points = result.curve[:: -math.ceil(len(result.curve) / POINTS)][::-1]
    validated = [point for point in points if point.validation_accuracy is not None]
    last = points[-1].step
    x = Axis(0, last, [(0, "0"), (last, f"{'iteration' if is_lbfgs else 'step'} {last:,}")])
    train_losses = [(point.step, point.train_cross_entropy) for point in points]
    validation_losses = [(point.step, point.validation_cross_entropy or 0.0) for point in validated]
    losses = [loss for _, loss in train_losses + validation_losses if math.isfinite(loss)]
    legend = [("first", "training photos" if is_lbfgs else "training batch"), ("second", "validation photos")]
    return Curves(
        accuracy=charts.line_chart(
            "Accuracy",
            x,
            charts.even_axis(0, 1, "{:.0%}".format),
            curves=[
                Curve("first", [(point.step, point.train_accuracy) for point in points]),
                Curve("second", [(point.step, point.validation_accuracy or 0.0) for point in validated]),
            ],
        ),
        cross_entropy=charts.line_chart(
            "Cross entropy",
            x,
            charts.round_axis(0, max(losses, default=0.0) or 1.0, "{:.3g}".format),
            curves=[Curve("first", train_losses), Curve("second", validation_losses)],
        ),
        legend=legend if validated else legend[:1],
        refit_step=_refit_step(result) if result.is_refitted else None,
    )


def _refit_step(result: Result) -> int:
    """The first iteration of the last fit, behind the last one that the validation photos judged."""
    return max((point.step for point in result.curve if point.validation_accuracy is not None), default=0) + 1


def _test(test: Evaluation, cache: Cache) -> TestResults:
    labels, has_few_classes = cache.labels, len(cache.labels) <= MATRIX
    return TestResults(
        accuracy=test.accuracy,
        confusion_matrix=_confusion_matrix(test.confusion, labels) if has_few_classes else None,
        confusions=[] if has_few_classes else _confusions(test.confusion, labels),
        classes=_classes(test, labels),
        calibration=test.calibration,
        reliability_diagram=charts.reliability_diagram("Accuracy by probability of the label", test.calibration),
        mistakes=_mistakes(test, cache),
        mistake_count=len(test.mistakes),
    )


def _confusion_matrix(confusion: np.ndarray, labels: Sequence[str]) -> Table:
    rows = []
    for truth, counts in enumerate(confusion.tolist()):
        total = sum(counts) or 1
        cells = [
            Cell(f"{count:,}" if count else "", count / total, colour="good" if predicted == truth else "bad")
            for predicted, count in enumerate(counts)
        ]
        rows.append(Row(labels[truth], cells))
    return Table(labels, rows)


def _confusions(confusion: np.ndarray, labels: Sequence[str]) -> list[tuple[str, str, str]]:
    """The CONFUSIONS most frequent confusions: true class, predicted class, photos."""
    wrong = confusion.copy()
    wrong.ravel()[:: len(labels) + 1] = 0  # the diagonal
    order = (-wrong).argsort(axis=None, kind="stable")[:CONFUSIONS].tolist()
    pairs = [divmod(place, len(labels)) for place in order]
    return [
        (labels[truth], labels[predicted], f"{wrong[truth, predicted]:,}")
        for truth, predicted in pairs
        if wrong[truth, predicted]
    ]


def _classes(test: Evaluation, labels: Sequence[str]) -> Table:
    """Precision and recall of each class. The worst class comes first: it is the one to do something about."""
    counts = test.confusion.sum(axis=1)
    columns = zip(labels, test.precision.tolist(), test.recall.tolist(), counts.tolist(), strict=True)
    # A class without test photos has no recall, and comes last.
    by_recall = sorted(columns, key=lambda column: math.inf if math.isnan(column[2]) else column[2])
    rows = [
        Row(label, [_share_cell(precision), _share_cell(recall), Cell(f"{count:,}")])
        for label, precision, recall, count in by_recall
    ]
    return Table(["precision", "recall", "photos"], rows, corner="class")


def _share_cell(share: float) -> Cell:
    return Cell("") if math.isnan(share) else Cell(percent(share), share)


def _mistakes(test: Evaluation, cache: Cache) -> list[Mistake]:
    """The MISTAKES most confident ones, the most confident first."""
    if not len(test.mistakes):
        return []
    from train.report import pictures  # here, because it imports TensorFlow

    order = (-test.probabilities).argsort(kind="stable")[:MISTAKES]
    rows = test.mistakes[order]
    columns = zip(
        rows.tolist(),
        test.predicted[order].tolist(),
        test.probabilities[order].tolist(),
        pictures.small(cache, rows),
        strict=True,
    )
    return [
        Mistake(
            label=cache.labels[cache.label_ids[row]],
            predicted=cache.labels[label_id],
            probability=probability,
            path=cache.paths[row],
            picture=base64.b64encode(picture).decode() if picture else None,
        )
        for row, label_id, probability, picture in columns
    ]


def _exports(exports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row of text for each file that was exported beside the SavedModel."""

    def share(export: Mapping[str, Any], name: str) -> str:
        return percent(export[name]) if name in export else ""

    return [
        [
            name,
            f"{export['bytes'] / 1e6:.1f} MB",
            share(export, "accuracy"),
            share(export, "classifier_accuracy"),
            str(export.get("images", "")),
        ]
        for name, export in exports.items()
    ]


def _settings(result: Result) -> list[tuple[str, str]]:
    """The names of all settings that have a value, and the values."""
    settings = [(name, value) for name, value in asdict(result.settings).items() if value is not None]
    settings.append(("fingerprint", result.cache.backbone.fingerprint))
    return [
        (name, " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
        for name, value in settings
    ]
