"""Small problems for the solvers, and what numpy says of them in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache.reader import Cache
from train import solvers
from train.head import Head
from train.settings import TrainSettings
from train.stream import Images

COUNTS = (60, 25, 40)  # images of a class, for classes that differ in size


def problem_of(opened: Cache, **settings: object) -> solvers.Problem:
    """Every fifth image validates."""
    values = {"how_many_training_steps": 60, "learning_rate": 0.1, "train_batch_size": 20, **settings}
    rows = np.arange(len(opened))
    training, validation = Images(opened, rows[rows % 5 > 0]), Images(opened, rows[rows % 5 == 0])
    chosen = TrainSettings(Path("cache"), Path("out"), **values)  # type: ignore[arg-type]
    return solvers.Problem(training, validation, chosen, "/CPU:0")


def vectors_of(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Bottlenecks float64 [n, D] and label ids [n], straight from the shards, one row at a time."""
    index = images.cache.index
    rows = [images.cache.shards[index.shard_ids[r]].rows.bottlenecks[index.shard_rows[r]] for r in images.rows]
    return np.array(rows, np.float64), index.label_ids[images.rows]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy_of(weights: np.ndarray, biases: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return -np.log(softmax(x @ weights + biases)[np.arange(len(y)), y]).mean()


def assert_same_head(found: Head, expected: Head, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.weights, expected.weights, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.biases, expected.biases, rtol=tolerance, atol=tolerance)
