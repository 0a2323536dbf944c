"""The head as a file of its own, for a service that runs one backbone and many heads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache import head as heads
from cache import thumbnails
from cache.calibration import Calibration
from cache.head import Example
from train.data.batches import Images
from train.report.evaluate import BINS, evaluate
from train.result import Result


def write(path: Path, result: Result) -> None:
    """Writes the head of a run. Raises UserError when it cannot be written, or has weights that are not finite."""
    nothing = Calibration(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS))
    head = heads.Head(
        backbone=result.cache.backbone,
        labels=result.cache.labels,
        weights=result.head.weights,
        biases=result.head.biases,
        temperature=result.calibrated.temperature,
        calibration=result.calibrated.validation or nothing,
        test_accuracy=result.test.accuracy if result.test else None,
        test_photos=result.test.count if result.test else 0,
        examples=list(_examples(result)),
    )
    heads.write(path, head)


def _examples(result: Result) -> Iterator[Example]:
    """Of each class those of its most confident test photos that have a thumbnail in the cache, class by class.

    Classes without any have validation photos instead. After lbfgs's last fit, the head has trained on these, and they
    were found with the head before: those that the last head gets wrong are left out. Examples show what a class looks
    like, and measure nothing.
    """
    cache = result.cache
    found: dict[int, list[Example]] = {}
    for evaluation in filter(None, (result.test, result.validation)):
        rows = evaluation.examples[~np.isin(cache.label_ids[evaluation.examples], list(found))]
        if again := evaluate(result.head, Images(cache, rows)):
            rows = rows[~np.isin(rows, again.mistakes)]
        for label_id, jpeg in zip(cache.label_ids[rows].tolist(), thumbnails.find(cache, rows), strict=True):
            if jpeg is not None:
                found.setdefault(label_id, []).append(Example(label_id, jpeg))
    for label_id in sorted(found):
        yield from found[label_id]
