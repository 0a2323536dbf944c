"""Small problems for the solvers, and what NumPy computes for them in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.reader import Cache
from train import solvers
from train.data.batches import Images
from train.data.schedule import Schedule
from train.settings import TrainSettings
from train.solvers import head
from train.solvers.head import Head

COUNTS = (60, 25, 40)  # images of a class, for classes that differ in size


def problem_of(opened: Cache, **settings: object) -> solvers.Problem:
    """Every fifth image validates."""
    values = {"how_many_training_steps": 60, "learning_rate": 0.1, "train_batch_size": 20, **settings}
    rows = np.arange(len(opened))
    training, validation = Images(opened, rows[rows % 5 > 0]), Images(opened, rows[rows % 5 == 0])
    chosen = TrainSettings(Path("cache"), Path("out"), **values)  # type: ignore[arg-type]
    return solvers.Problem(training, validation, chosen, "/CPU:0")


def schedule_of(problem: solvers.Problem, batch_size: int | None = None) -> Schedule:
    """The batches that sgd takes."""
    settings = problem.settings
    return Schedule(problem.training, batch_size or settings.train_batch_size, settings.balanced, settings.seed)


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


def descent(
    problem: solvers.Problem, rate: float, l2: float, class_weights: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, float, float]]:
    """After each step of sgd: weights, biases, and its own batch's accuracy and cross entropy, by the textbook."""
    x, y = vectors_of(problem.training)
    rows, _, _ = problem.training.by_class
    place_of = {row: place for place, row in enumerate(problem.training.rows.tolist())}
    classes = len(problem.training.cache.labels)
    start = head.initial(x.shape[1], classes, np.random.default_rng([problem.settings.seed, 0]))
    weights, biases = start.weights.astype(float), start.biases.astype(float)
    class_weights = np.ones(classes) if class_weights is None else class_weights
    (batches,) = schedule_of(problem).batches(0, [problem.settings.how_many_training_steps])
    for places in batches:
        drawn = np.array([place_of[row] for row in rows[places].tolist()])
        batch, one_hot = x[drawn], np.eye(classes)[y[drawn]]
        error = (softmax(batch @ weights + biases) - one_hot) * class_weights[y[drawn]][:, None] / len(drawn)
        weights = weights - rate * (batch.T @ error + l2 * weights)
        biases = biases - rate * error.sum(axis=0)
        scores = batch @ weights + biases
        yield weights, biases, (scores.argmax(1) == y[drawn]).mean(), cross_entropy_of(weights, biases, batch, y[drawn])


def assert_same_head(found: Head, expected: Head, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.weights, expected.weights, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.biases, expected.biases, rtol=tolerance, atol=tolerance)
