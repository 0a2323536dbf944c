"""Pictures of the result: `report.html`, one file that needs no network, and `metrics.json`, its numbers."""

from __future__ import annotations

import html as markup
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from train.evaluate import Evaluation
    from train.run import Point, Result

WORST = 25  # mistakes that the report lists, of the classifier's surest
MATRIX = 30  # classes above which the confusion matrix is a list of the commonest confusions
POINTS = 400  # of a curve: more would not show

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --text: #1c2430; --soft: #667085; --line: #d9dee7; --page: #fff; --train: #d9730d; --validation: #2563c9;
  --good: 37, 99, 201; --bad: 201, 60, 37; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ef; --soft: #98a2b3; --line: #343b47; --page: #14181f;
  --train: #f0a050; --validation: #74a5f5; --good: 116, 165, 245; --bad: 245, 130, 110; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.soft, figcaption, th { color: var(--soft); } .wide { overflow-x: auto; }
figure { margin: 0; flex: 1 1 26rem; } .curves { display: flex; flex-wrap: wrap; gap: 1.5rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); } svg polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
svg .train { stroke: var(--train); } svg .validation { stroke: var(--validation); }
b.train { color: var(--train); } b.validation { color: var(--validation); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; font-weight: normal; border-bottom: 1px solid var(--line); }
th.name, td.name { text-align: left; } td.name { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$headline</h1>
<p class="soft">$summary</p>
$sections
</body>
</html>
""")


def html(result: Result) -> str:
    """The report as one HTML page, with its pictures and style inside."""
    test, labels = result.test, result.cache.labels
    sections = [_section("Learning curves", _curves(result.curve))]
    if test is not None:
        sections += [
            _section("Confusion on the test images", _confusion(test.confusion, labels)),
            _section("Classes", _classes(test, labels)),
            _section("The surest mistakes", _mistakes(test, result)),
        ]
    if result.exports:
        sections.append(_section("Exports", _exports(result.exports)))
    sections.append(_section("Settings", _settings(result)))
    headline = f"Final test accuracy {test.accuracy:.1%}" if test else "No test images"
    train, validation, testing = (f"{count:,}" for count in result.counts)
    summary = (
        f"{len(labels)} classes, {train} images to train on, {validation} to validate and {testing} to test "
        f"with, on bottlenecks of {result.cache.module.module}. {result.settings.how_many_training_steps:,} "
        f"steps in {result.seconds:.1f} s."
    )
    return _PAGE.substitute(
        title=_escape(headline),
        headline=_escape(headline),
        summary=_escape(summary),
        sections="\n".join(sections),
    )


def metrics(result: Result) -> str:
    """What the run found, as JSON; accuracies are shares from 0 to 1, cross entropies in nats."""
    module = result.cache.module
    train, validation, test = result.counts
    content = {
        "test": _evaluation(result.test),
        "validation": _evaluation(result.validation),
        "labels": [printable(label) for label in result.cache.labels],
        "images": {"train": train, "validation": validation, "test": test},
        "module": {"module": module.module, "fingerprint": module.fingerprint, "dimension": module.dimension},
        "settings": {name: _plain(value) for name, value in asdict(result.settings).items()},
        "exports": result.exports,
        "seconds": round(result.seconds, 3),
        "curve": [asdict(point) for point in result.curve],
    }
    return json.dumps(content, indent=1) + "\n"


def printable(path: str) -> str:
    """A path or label as text of one line: bytes that are not UTF-8 become replacement characters, control
    characters their escapes."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _evaluation(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {
        "accuracy": evaluation.accuracy,
        "cross_entropy": evaluation.cross_entropy,
        "count": evaluation.count,
        "confusion": evaluation.confusion.tolist(),
    }


def _curves(curve: Sequence[Point]) -> str:
    points = curve[:: max(1, len(curve) // POINTS)]
    accuracy = _plot(
        "Accuracy",
        [(p.step, p.train_accuracy) for p in points],
        [(p.step, p.validation_accuracy) for p in points if p.validation_accuracy is not None],
        top=1.0,
        tick="{:.0%}".format,
    )
    highest = max(max(p.train_cross_entropy, p.validation_cross_entropy or 0.0) for p in points)
    cross_entropy = _plot(
        "Cross entropy",
        [(p.step, p.train_cross_entropy) for p in points],
        [(p.step, p.validation_cross_entropy) for p in points if p.validation_cross_entropy is not None],
        top=highest or 1.0,
        tick="{:.2f}".format,
    )
    return (
        f'<div class="curves">{accuracy}{cross_entropy}</div>\n<p class="soft"><b class="train">&#9632;</b> training '
        'batch <b class="validation">&#9632;</b> validation images</p>'
    )


def _plot(
    title: str,
    train: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    top: float,
    tick: Callable[[float], str],
) -> str:
    """A line plot as SVG: steps to the right, values from 0 to `top` upwards."""
    left, upper, width, height = 42, 8, 390, 190
    steps = train[-1][0]

    def line(name: str, points: Sequence[tuple[int, float]]) -> str:
        places = " ".join(f"{left + x / steps * width:.1f},{upper + (1 - y / top) * height:.1f}" for x, y in points)
        return f'<polyline class="{name}" points="{places}"/>'

    grid = ""
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = upper + (1 - share) * height
        grid += f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y}" y2="{y}"/>'
        grid += f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{tick(share * top)}</text>'
    below = upper + height + 16
    grid += f'<text x="{left}" y="{below}">0</text>'
    grid += f'<text x="{left + width}" y="{below}" text-anchor="end">step {steps:,}</text>'
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {left + width + 6} {below + 6}" role="img" '
        f'aria-label="{title} over the steps">{grid}{line("train", train)}{line("validation", validation)}'
        "</svg></figure>"
    )


def _confusion(confusion: np.ndarray, labels: Sequence[str]) -> str:
    if len(labels) > MATRIX:
        return _commonest_confusions(confusion, labels)
    rows = []
    for truth, counts in enumerate(confusion.tolist()):
        total = sum(counts)
        cells = [
            (_shade(truth == predicted, count / total if total else 0.0), f"{count:,}" if count else "")
            for predicted, count in enumerate(counts)
        ]
        rows.append(
            f'<tr><th class="name">{_escape(labels[truth])}</th>'
            + "".join(f"<td{style}>{text}</td>" for style, text in cells)
            + "</tr>"
        )
    heads = "".join(f"<th>{_escape(label)}</th>" for label in labels)
    return (
        '<p class="soft">Each row is a true class, each column what the images were taken for.</p>'
        f'<div class="wide"><table><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _commonest_confusions(confusion: np.ndarray, labels: Sequence[str]) -> str:
    wrong = confusion.copy()
    wrong.ravel()[:: len(labels) + 1] = 0
    order = (-wrong).argsort(axis=None, kind="stable")[:MATRIX].tolist()
    pairs = [divmod(cell, len(labels)) for cell in order]
    return _table(
        ["true class", "taken for", "images"],
        [(labels[truth], labels[taken], f"{wrong[truth, taken]:,}") for truth, taken in pairs if wrong[truth, taken]],
        names=2,
    )


def _classes(test: Evaluation, labels: Sequence[str]) -> str:
    counts = test.confusion.sum(axis=1).tolist()
    columns = zip(labels, test.precision.tolist(), test.recall.tolist(), counts, strict=True)
    return '<p class="soft">Precision: of the images given this label, the share that deserve it. Recall: of the ' + (
        "class's images, the share that got it.</p>"
        + _table(
            ["class", "precision", "recall", "images"],
            [(label, _percent(precision), _percent(recall), f"{n:,}") for label, precision, recall, n in columns],
        )
    )


def _mistakes(test: Evaluation, result: Result) -> str:
    cache = result.cache
    if not len(test.mistakes):
        return "<p>None.</p>"
    worst = (-test.probabilities).argsort(kind="stable")[:WORST]
    rows = [
        (
            cache.paths[test.mistakes[i]],
            cache.labels[cache.label_ids[test.mistakes[i]]],
            cache.labels[test.predicted[i]],
            _percent(float(test.probabilities[i])),
        )
        for i in worst
    ]
    return (
        f'<p class="soft">{len(worst)} of {len(test.mistakes):,}. A sure mistake is often a wrong label.</p>'
        + _table(["image", "label", "taken for", "probability"], rows, names=3)
    )


def _settings(result: Result) -> str:
    rows = [(name, str(_plain(value))) for name, value in asdict(result.settings).items() if value is not None]
    rows.append(("fingerprint", result.cache.module.fingerprint))
    return _table(["setting", "value"], rows, names=2)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """Cells of text; the first `names` columns are words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=name' * (i < names)}>{_escape(cell)}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{line(heads, "th")}</tr>{body}</table></div>'


def _section(title: str, content: str) -> str:
    return f"<h2>{_escape(title)}</h2>\n{content}"


def _shade(right: bool, share: float) -> str:
    """A cell's background, the stronger the more of the class's images it holds."""
    return f' style="background: rgba(var(--{"good" if right else "bad"}), {share:.2f})"' if share else ""


def _percent(share: float) -> str:
    return "" if share != share else f"{share:.1%}"  # NaN, of a class that has no images, is no number to show


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
    return _table(["file", "size", "test accuracy", "the SavedModel's", "on images"], rows)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float)) else printable(str(value))


def _escape(text: str) -> str:
    return markup.escape(printable(text))
