"""`metrics.json`: the numbers of the report, for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.text import printable
from train.report.tables import MATRIX

if TYPE_CHECKING:
    from train.report.evaluate import Evaluation
    from train.result import Result


def metrics(result: Result) -> str:
    """The run's results as JSON. Accuracies, precision, recall and calibration are shares from 0 to 1; cross entropies
    are in nats. The calibration of `test` and `validation` is that of the classifier, whose logits are not divided by
    the `temperature`; `ece_with_temperature` is that of the test photos if they are.

    A number that does not exist is null: the recall of a class without photos, the loss of a head that diverged.
    `confusion` has a row for each true class, and in it the photos by predicted class. Above MATRIX classes it has the
    pairs with photos instead, as three lists: the class ids `true` and `predicted`, which count from 0 in the order of
    `labels`, and the number of `photos`.
    """
    backbone = result.cache.backbone
    train, validation, test = result.counts
    with_temperature = result.calibrated.test
    content = {
        "solver": result.settings.solver,
        "test": _evaluation(result.test),
        "validation": _evaluation(result.validation),
        "temperature": result.calibrated.temperature,
        "ece_with_temperature": with_temperature.error if with_temperature else None,
        "labels": [printable(label) for label in result.cache.labels],
        "images": {"train": train, "validation": validation, "test": test},
        "refitted": result.is_refitted,
        "module": {"module": backbone.module, "fingerprint": backbone.fingerprint, "dimension": backbone.dimension},
        "settings": {name: _setting(value) for name, value in asdict(result.settings).items()},
        "exports": result.exports,
        "seconds": round(result.seconds, 3),
        "grid": [asdict(trial) for trial in result.grid],
        "curve": [asdict(point) for point in result.curve],
    }
    return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"


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
        "confusion": _confusion(evaluation.confusion),
        "calibration": {
            "ece": calibration.error,
            "count": calibration.counts.tolist(),
            "accuracy": calibration.accuracy.tolist(),
            "confidence": calibration.confidence.tolist(),
        },
    }


def _confusion(confusion: np.ndarray) -> list[list[int]] | dict[str, list[int]]:
    if len(confusion) <= MATRIX:
        return confusion.tolist()
    true, predicted = np.nonzero(confusion)
    photos = confusion[true, predicted]
    return {"true": true.tolist(), "predicted": predicted.tolist(), "photos": photos.tolist()}


def _setting(value: Any) -> Any:
    """A setting as JSON has it: a path becomes a string."""
    if isinstance(value, (list, tuple)):
        return [_setting(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else printable(str(value))


def _without_nan(content: Any) -> Any:
    """The same with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
