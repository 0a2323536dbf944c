"""Heads of random weights, written and compared without any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from cache.calibration import Calibration
from cache.head import Example, Head
from tests.random_cache import BACKBONE, DIMENSION
from tests.thumbnail_cache import jpeg


def random_head(labels: Sequence[str] = ("roses", "tulips", "weeds"), **others: Any) -> Head:
    """A head of the labels with two examples of the first class and one of the last."""
    random = np.random.default_rng(len(labels))
    counts = random.integers(0, 50, 15)
    values: dict[str, Any] = {
        "backbone": BACKBONE,
        "labels": labels,
        "weights": random.normal(size=(DIMENSION, len(labels))).astype(np.float32),
        "biases": random.normal(size=len(labels)).astype(np.float32),
        "temperature": 1.75,
        "calibration": Calibration(counts, counts // 2, counts * 0.75),
        "test_accuracy": 0.875,
        "test_photos": 96,
        "examples": [Example(0, jpeg(1)), Example(0, jpeg(2)), Example(len(labels) - 1, jpeg(3))],
    }
    return Head(**{**values, **others})


def content(head: Head) -> list[Any]:
    """All of a head, as values that can be compared."""
    values = [getattr(head, field.name) for field in fields(head) if field.name not in ("labels", "calibration")]
    values += [list(head.labels), head.calibration.counts, head.calibration.hits, head.calibration.sums]
    return [(v.dtype, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for v in values]
