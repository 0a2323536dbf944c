"""Pictures of the result: `report.html`, one file that needs no network, and `metrics.json`, its numbers."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from train import charts
from train.charts import Axis, Line
from train.markup import cell, escape, facts, legend, matrix, note, page, percent, printable, section, table

if TYPE_CHECKING:
    import numpy as np

    from train.evaluate import Calibration, Evaluation
    from train.result import Result
    from train.trial import Trial

WORST = 25  # mistakes that the report shows, of the classifier's surest
MATRIX = 30  # classes above which the confusion matrix is a list of the commonest confusions
POINTS = 400  # of a curve: more would not show
FAINT = 0.1  # of accuracy below the best of the grid: where its colour has faded

WEIGHTINGS = {"balanced": "all classes count alike", "none": "all images count alike"}


def html(result: Result) -> str:
    """The report as one HTML page, with its pictures and style inside."""
    test, labels = result.test, result.cache.labels
    sections = [facts(_facts(result)), section("Learning curves", _curves(result))]
    if result.grid:
        sections.append(section("What was tried", _grid(result.grid)))
    if test is not None:
        sections += [
            section("Confusion on the test images", _confusion(test.confusion, labels)),
            section("Classes", _classes(test, labels)),
            section("Can the probabilities be believed?", _calibration(test.calibration)),
            section("The surest mistakes", _mistakes(test, result)),
        ]
    if result.exports:
        sections.append(section("Exports", _exports(result.exports)))
    sections.append(section("Settings", _settings(result)))
    train, validation, testing = (f"{count:,}" for count in result.counts)
    summary = (
        f"{len(labels)} classes, {train} images to train on, {validation} to validate and {testing} to test with, on "
        f"bottlenecks of {result.cache.module.module}. Fitted by {result.how_fitted} in {result.seconds:.1f} s."
    )
    title = f"Final test accuracy {test.accuracy:.1%}" if test else "No test images"
    return page(title, summary, "\n".join(sections))


def metrics(result: Result) -> str:
    """What the run found, as JSON; accuracies and the like are shares from 0 to 1, cross entropies in nats.

    null stands for a number that there is none of: the recall of a class without images, the loss of a head that
    diverged.
    """
    module = result.cache.module
    train, validation, test = result.counts
    content = {
        "solver": result.settings.solver,
        "test": _evaluation(result.test),
        "validation": _evaluation(result.validation),
        "labels": [printable(label) for label in result.cache.labels],
        "images": {"train": train, "validation": validation, "test": test},
        "refitted": result.is_refitted,
        "module": {"module": module.module, "fingerprint": module.fingerprint, "dimension": module.dimension},
        "settings": {name: _plain(value) for name, value in asdict(result.settings).items()},
        "exports": result.exports,
        "seconds": round(result.seconds, 3),
        "grid": [asdict(trial) for trial in result.grid],
        "curve": [asdict(point) for point in result.curve],
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _evaluation(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    calibration = evaluation.calibration
    return {
        "accuracy": evaluation.accuracy,
        "cross_entropy": evaluation.cross_entropy,
        "count": evaluation.count,
        "precision": evaluation.precision.tolist(),
        "recall": evaluation.recall.tolist(),
        "confusion": evaluation.confusion.tolist(),
        "calibration": {
            "ece": calibration.error,
            "count": calibration.counts.tolist(),
            "accuracy": calibration.accuracy.tolist(),
            "confidence": calibration.confidence.tolist(),
        },
    }


def _finite(content: Any) -> Any:
    """The same, with null for the numbers that JSON has no word for."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _facts(result: Result) -> list[tuple[str, str]]:
    found = []
    if result.test is not None:
        found += [
            ("test images", f"{result.test.count:,}"),
            ("test cross entropy", f"{result.test.cross_entropy:.3f}"),
            ("calibration error", f"{result.test.calibration.error:.1%}"),
        ]
    if result.validation is not None:
        when = " before the refit" if result.is_refitted else ""
        found.append((f"validation accuracy{when}", f"{result.validation.accuracy:.1%}"))
    return found


def _curves(result: Result) -> str:
    curve, lbfgs = result.curve, result.settings.solver == "lbfgs"
    if not curve:
        return note("There is no point of them.")
    # From the last one backwards: the curve ends where the training ended.
    points = curve[:: -max(1, math.ceil(len(curve) / POINTS))][::-1]
    steps = points[-1].step
    x = Axis(0, steps, [(0, "0"), (steps, f"{'iteration' if lbfgs else 'step'} {steps:,}")])
    losses = [loss for p in points for loss in (p.train_cross_entropy, p.validation_cross_entropy or 0.0)]
    highest = max(filter(math.isfinite, losses), default=0.0) or 1.0
    accuracy = charts.lines(
        "Accuracy",
        x,
        charts.even(0, 1, "{:.0%}".format),
        [
            Line("first", [(p.step, p.train_accuracy) for p in points]),
            Line("second", [(p.step, p.validation_accuracy) for p in points if p.validation_accuracy is not None]),
        ],
    )
    cross_entropy = charts.lines(
        "Cross entropy",
        x,
        charts.around(0, highest, "{:.3g}".format),
        [
            Line("first", [(p.step, p.train_cross_entropy) for p in points]),
            Line(
                "second",
                [(p.step, p.validation_cross_entropy) for p in points if p.validation_cross_entropy is not None],
            ),
        ],
    )
    told = [("first", f"training {'images' if lbfgs else 'batch'}"), ("second", "validation images")]
    validated = [p.step for p in curve if p.validation_accuracy is not None]
    drawn = f'<div class="charts">{accuracy}{cross_entropy}</div>\n' + legend(told if validated else told[:1])
    if not result.is_refitted:
        return drawn
    return drawn + note(
        f"From iteration {max(validated) + 1:,} on the validation images train, too, and can judge no more. The "
        "figures on them are those of the best fit before."
    )


def _grid(grid: Sequence[Trial]) -> str:
    told = "The accuracy of each head on the validation images. The framed one has the least cross entropy on them"
    told += ", in which all classes count alike." if _weightings(grid) == ["balanced"] else "."
    if all(trial.validation_accuracy is None for trial in grid):
        told = "There were no validation images to choose by."
    over_rates = any(trial.learning_rate is not None for trial in grid)
    return note(told) + (_heat_maps(grid) if over_rates else _strengths(grid))


def _heat_maps(grid: Sequence[Trial]) -> str:
    """For each weighting a table of accuracies: L2 strengths downwards, learning rates to the right."""
    known = _known(grid)
    best, worst = max(known, default=0.0), min(known, default=0.0)
    span = min(FAINT, best - worst) or FAINT
    rates = sorted({t.learning_rate for t in grid if t.learning_rate is not None})
    drawn = ""
    for weighting in _weightings(grid):
        tried = {(t.l2, t.learning_rate): t for t in grid if t.class_weights == weighting}
        rows = []
        for l2 in sorted({t.l2 for t in grid}):
            cells = []
            for rate in rates:
                trial = tried.get((l2, rate))
                accuracy = trial.validation_accuracy if trial else None
                share = 0.0 if accuracy is None else max(0.0, 1 - (best - accuracy) / span)
                cells.append(cell(_accuracy(trial), share, chosen=bool(trial and trial.chosen), tip=_loss(trial)))
            rows.append((f"L2 {l2:.2g}", cells))
        drawn += f"<h3>{escape(_weighting(weighting))}</h3>"
        drawn += matrix("learning rate", [f"{rate:g}" for rate in rates], rows, upright=False)
    return drawn


def _strengths(grid: Sequence[Trial]) -> str:
    """The validation accuracy over the L2 strengths, evenly spaced whatever they are, and the numbers."""
    strengths, weightings = sorted({trial.l2 for trial in grid}), _weightings(grid)
    several, known = len(weightings) > 1, _known(grid)
    colours = dict(zip(weightings, ("second", "first"), strict=False))

    def point(trial: Trial) -> tuple[float, float]:
        return strengths.index(trial.l2), trial.validation_accuracy or 0.0

    drawn = ""
    if known:
        apart = math.ceil(len(strengths) / 7)  # texts of ticks that touch cannot be read
        drawn = charts.lines(
            "Validation accuracy over the strength of L2",
            Axis(0, len(strengths) - 1, [(i, f"{strengths[i]:.2g}") for i in range(0, len(strengths), apart)]),
            charts.around(min(known), max(known), lambda share: f"{100 * share:.4g}%"),
            [Line(colour, [point(t) for t in _by_strength(grid, name)]) for name, colour in colours.items()],
            next((point(t) for t in grid if t.chosen), None),
        )
    rows = [
        (
            f"L2 {t.l2:.2g}" + f", {_weighting(t.class_weights)}" * several,
            [cell(_accuracy(t), chosen=t.chosen), cell(_number(t.validation_cross_entropy))],
        )
        for t in sorted(grid, key=lambda t: (t.class_weights, t.l2))
    ]
    numbers = matrix("strength", ["validation accuracy", "cross entropy"], rows, upright=False)
    told = legend((colour, _weighting(name)) for name, colour in colours.items()) if several else ""
    return f'<div class="charts">{drawn}{numbers}</div>{told}'


def _by_strength(grid: Sequence[Trial], weighting: str) -> list[Trial]:
    known = [t for t in grid if t.class_weights == weighting and t.validation_accuracy is not None]
    return sorted(known, key=lambda t: t.l2)


def _known(grid: Sequence[Trial]) -> list[float]:
    """The accuracies that there are."""
    return [t.validation_accuracy for t in grid if t.validation_accuracy is not None]


def _weightings(grid: Sequence[Trial]) -> list[str]:
    return sorted({trial.class_weights for trial in grid})


def _weighting(name: str) -> str:
    return WEIGHTINGS.get(name, name)


def _accuracy(trial: Trial | None) -> str:
    if trial is None:
        return ""
    if trial.validation_cross_entropy is not None and not math.isfinite(trial.validation_cross_entropy):
        return "diverged"
    return "\N{EN DASH}" if trial.validation_accuracy is None else percent(trial.validation_accuracy)


def _loss(trial: Trial | None) -> str:
    return f"cross entropy {_number(trial.validation_cross_entropy)}" if trial else ""


def _number(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _confusion(confusion: np.ndarray, labels: Sequence[str]) -> str:
    if len(labels) > MATRIX:
        return _commonest_confusions(confusion, labels)
    rows = []
    for truth, counts in enumerate(confusion.tolist()):
        total = sum(counts) or 1
        cells = [
            cell(f"{count:,}" if count else "", count / total, good=truth == taken)
            for taken, count in enumerate(counts)
        ]
        rows.append((labels[truth], cells))
    explained = note("Each row is a true class, each column what the images were taken for.")
    return explained + matrix("", labels, rows, upright=True)


def _commonest_confusions(confusion: np.ndarray, labels: Sequence[str]) -> str:
    wrong = confusion.copy()
    wrong.ravel()[:: len(labels) + 1] = 0
    order = (-wrong).argsort(axis=None, kind="stable")[:MATRIX].tolist()
    pairs = [divmod(place, len(labels)) for place in order]
    rows = [(labels[truth], labels[taken], f"{wrong[truth, taken]:,}") for truth, taken in pairs if wrong[truth, taken]]
    if not rows:
        return "<p>None.</p>"
    return note("The commonest ones.") + table(["true class", "taken for", "images"], rows, names=2)


def _classes(test: Evaluation, labels: Sequence[str]) -> str:
    """The worst class first: that is the one to do something about."""
    counts = test.confusion.sum(axis=1)
    columns = zip(labels, test.precision.tolist(), test.recall.tolist(), counts.tolist(), strict=True)
    # NaN, of a class without images, compares with nothing: such classes come last.
    ordered = sorted(columns, key=lambda row: (math.isnan(row[2]), row[2] if row[3] else 0.0))
    rows = [
        (
            label,
            [cell(percent(precision), _share(precision)), cell(percent(recall), _share(recall)), cell(f"{count:,}")],
        )
        for label, precision, recall, count in ordered
    ]
    return note(
        "Precision: of the images given this label, the share that deserve it. Recall: of the class's images, the "
        "share that got it. The class that is recognised worst comes first."
    ) + matrix("class", ["precision", "recall", "images"], rows, upright=False)


def _calibration(calibration: Calibration) -> str:
    excess = calibration.excess
    manner = "surer than it is right" if excess > 0 else "more modest than it need be"
    told = (
        f"Where they can, of the images with a probability of 80%, 80% are right, and the bars end on the dashed line. "
        f"The expected calibration error, how far they are from it on average, is {calibration.error:.1%}. Over all "
        f"images the classifier is {abs(excess):.1%} {manner}. The lower bars count the images."
    )
    diagram = charts.reliability("Accuracy over the probability of the label", calibration)
    told_colours = [("bar", "right"), ("less", "less often than claimed"), ("more", "more often than claimed")]
    return f'{note(told)}<div class="charts">{diagram}</div>{legend(told_colours)}'


def _mistakes(test: Evaluation, result: Result) -> str:
    if not len(test.mistakes):
        return "<p>None.</p>"
    from train import pictures  # TensorFlow, which has been needed by now

    cache = result.cache
    worst = (-test.probabilities).argsort(kind="stable")[:WORST]
    rows = test.mistakes[worst]
    found = pictures.small(cache, rows)
    cards = ""
    for i, row, picture in zip(worst, rows, found, strict=True):
        shown = ""
        if any(found):
            shown = f'<div class="picture">{_image(picture) if picture else "no picture"}</div>'
        cards += (
            f"<figure>{shown}<figcaption><b>{escape(cache.labels[cache.label_ids[row]])}</b><br>taken for "
            f"<b>{escape(cache.labels[test.predicted[i]])}</b>, {percent(float(test.probabilities[i]))}<br>"
            f"<span>{escape(cache.paths[row])}</span></figcaption></figure>"
        )
    told = f"{len(worst)} of {len(test.mistakes):,}. A sure mistake is often a wrong label."
    return f'{note(told)}<div class="cards">{cards}</div>'


def _image(picture: bytes) -> str:
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'


def _settings(result: Result) -> str:
    rows = [(name, str(_plain(value))) for name, value in asdict(result.settings).items() if value is not None]
    rows.append(("fingerprint", result.cache.module.fingerprint))
    return table(["setting", "value"], rows, names=2)


def _share(value: float) -> float:
    return 0.0 if value != value else value


def _exports(exports: Mapping[str, Mapping[str, Any]]) -> str:
    def share(export: Mapping[str, Any], name: str) -> str:
        return f"{export[name]:.1%}" if name in export else ""

    rows = [
        [
            name,
            f"{e['bytes'] / 1e6:.1f} MB",
            share(e, "accuracy"),
            share(e, "classifier_accuracy"),
            str(e.get("images", "")),
        ]
        for name, e in exports.items()
    ]
    return table(["file", "size", "test accuracy", "the SavedModel's", "on images"], rows)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float)) else printable(str(value))
