"""What the answers must be, by other ways than the service's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import cache
from cache import head
from tests.extract.service import serving

# A bottleneck is a sum of 48 products of numbers up to 2 in float32, and a tanh; its order differs with the batch.
ROUNDING = 48 * 2 * 2**-24
# Logits are sums of 8 of them times weights below 10, and probabilities change by at most a quarter as much.
LARGEST_WEIGHT = 10
ROUNDING_OF_PROBABILITIES = 8 * LARGEST_WEIGHT * ROUNDING / 4


@dataclass(frozen=True)
class Expected:
    """Of some photos."""

    contents: list[bytes]  # their files
    bottlenecks: np.ndarray  # float32 [n, D], as the cache has them
    probabilities: np.ndarray  # float32 [n, C], of the exported classifier, run by TensorFlow
    labels: list[str]  # of the exported classifier


def expected(root: Path, count: int = 5) -> Expected:
    """Of the first photos of what `serving.make(root)` has made."""
    import tensorflow as tf

    contents = serving.photos(root, count)
    opened = cache.open(root / "cache")
    rows = [list(opened.paths).index(path) for path in serving.photo_paths(count)]
    classify = tf.saved_model.load(str(root / serving.HEAD / "latest" / "saved_model")).signatures["serving_default"]
    assert abs(head.read(root / serving.HEAD).weights).max() < LARGEST_WEIGHT
    answers = classify(image_bytes=tf.constant(contents))
    labels = [os.fsdecode(label) for label in answers["label"].numpy()]
    return Expected(contents, opened.bottlenecks(np.array(rows)), answers["probabilities"].numpy(), labels)


def assert_probabilities(answered: Sequence[Sequence[float]], wanted: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(answered), wanted, rtol=0, atol=ROUNDING_OF_PROBABILITIES)


def assert_bottlenecks(answered: Sequence[Sequence[float]], wanted: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(answered), wanted, rtol=0, atol=ROUNDING)
