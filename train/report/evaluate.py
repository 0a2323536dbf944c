"""Evaluation of a head on a set of photos: accuracy, confusion, calibration, and the mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.calibration import Calibration, ratio
from cache.head import EXAMPLES
from train.data import batches
from train.data.batches import Images
from train.solvers.head import Head

BINS = 15  # of the top-1 probability, equally wide: as many as in Guo et al. (see `Calibration.error`)

_EXAMPLE = np.dtype([("row", np.int64), ("label_id", np.int32), ("probability", np.float32)])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a head classifies n > 0 photos, of C classes. Of these it gets m wrong, the mistakes."""

    count: int  # n
    cross_entropy: float  # the mean, in nats
    confusion: np.ndarray  # int64 [C, C]: photos by true class (row) and predicted class (column)
    calibration: Calibration
    mistakes: np.ndarray  # int64 [m]: the photos' rows in the index
    predicted: np.ndarray  # int32 [m]: the label ids that the head predicts for them
    probabilities: np.ndarray  # float32 [m]: of these labels
    examples: np.ndarray  # int64 [e]: rows in the index, class by class: of the photos of a class that the head gets
    # right, the EXAMPLES with the highest probability; of equal ones the first

    @property
    def accuracy(self) -> float:
        """The share of photos whose top-1 class is right."""
        return float(np.trace(self.confusion) / self.count)

    @property
    def recall(self) -> np.ndarray:
        """float64 [C]: the share of a class's photos that the head recognises; NaN for a class without photos."""
        return ratio(np.diag(self.confusion), self.confusion.sum(axis=1))

    @property
    def precision(self) -> np.ndarray:
        """float64 [C]: the share of photos with a predicted class that are of it; NaN for a class never predicted."""
        return ratio(np.diag(self.confusion), self.confusion.sum(axis=0))


def evaluate(head: Head, images: Images) -> Evaluation | None:
    """Evaluates the head on all the images, a block at a time in bounded memory. Returns None if there are none."""
    if not len(images):
        return None
    classes = len(head.biases)
    confusion = np.zeros(classes * classes, np.int64)
    bins = np.zeros((3, BINS))  # counts, hits, sums; float64 counts exactly up to 2^53
    total_loss, done = 0.0, 0
    mistakes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    examples = np.zeros(0, _EXAMPLE)
    for bottlenecks, label_ids in batches.sequential(images):
        predicted, probabilities, losses = _predict(head, bottlenecks, label_ids)
        confusion += np.bincount(label_ids * np.int64(classes) + predicted, minlength=len(confusion))
        bins += _bins(probabilities, predicted == label_ids)
        total_loss += losses.sum(dtype=np.float64)
        rows, is_right = images.rows[done : done + len(predicted)].astype(np.int64), predicted == label_ids
        mistakes.append((rows[~is_right], predicted[~is_right], probabilities[~is_right]))
        examples = _most_confident(examples, rows[is_right], label_ids[is_right], probabilities[is_right])
        done += len(predicted)
    rows, predicted, probabilities = (np.concatenate(column) for column in zip(*mistakes, strict=True))
    return Evaluation(
        count=done,
        cross_entropy=total_loss / done,
        confusion=confusion.reshape(classes, classes),
        calibration=Calibration(bins[0].astype(np.int64), bins[1].astype(np.int64), bins[2]),
        mistakes=rows,
        predicted=predicted,
        probabilities=probabilities,
        examples=examples["row"],
    )


def _most_confident(
    before: np.ndarray, rows: np.ndarray, label_ids: np.ndarray, probabilities: np.ndarray
) -> np.ndarray:
    """The EXAMPLES most confident of each class, class by class, among the examples `before` and further photos [n]."""
    more = np.empty(len(rows), _EXAMPLE)
    more["row"], more["label_id"], more["probability"] = rows, label_ids, probabilities
    examples = np.concatenate([before, more])
    examples = examples[np.lexsort((examples["row"], -examples["probability"], examples["label_id"]))]
    _, starts, counts = np.unique(examples["label_id"], return_index=True, return_counts=True)
    return examples[np.arange(len(examples)) - np.repeat(starts, counts) < EXAMPLES]


def _predict(head: Head, bottlenecks: np.ndarray, label_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For bottlenecks [m, D]: the top-1 classes int32 [m], their probabilities [m], and the cross entropies [m].

    In numpy: reading the shards takes longer than this arithmetic.
    """
    scores = bottlenecks.astype(np.float32, copy=False) @ head.weights + head.biases
    predicted = scores.argmax(axis=1).astype(np.int32)
    scores -= scores.max(axis=1, keepdims=True)  # exp cannot overflow, and of the top-1 class it is 1
    sums = np.exp(scores).sum(axis=1)
    losses = np.log(sums) - scores[np.arange(len(scores)), label_ids]
    return predicted, 1 / sums, losses


def _bins(probabilities: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """float64 [3, BINS]: `counts`, `hits` and `sums` of a Calibration, for top-1 probabilities [m]."""
    places = np.clip(np.ceil(probabilities * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return np.stack([np.bincount(places, weights, BINS) for weights in (None, is_right, probabilities)])
