"""How good a head is on a set of images, and where it errs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train import stream
from train.head import Head
from train.stream import Images


@dataclass(frozen=True)
class Evaluation:
    """What a head does on n > 0 images. The columns of mistakes have one entry per wrong image."""

    count: int  # n
    cross_entropy: float  # mean, in nats
    confusion: np.ndarray  # int64 [C, C]: images of class (row) that were taken for class (column)
    mistakes: np.ndarray  # int64 [m], rows of the index
    predicted: np.ndarray  # int32 [m], label ids
    probabilities: np.ndarray  # float32 [m], of the predicted class

    @property
    def accuracy(self) -> float:
        """The share of images whose top-1 class is theirs."""
        return float(np.trace(self.confusion) / self.count)

    @property
    def recall(self) -> np.ndarray:
        """float64 [C]: of a class's images the share that was recognised; NaN for a class without images."""
        return _share(np.diag(self.confusion), self.confusion.sum(axis=1))

    @property
    def precision(self) -> np.ndarray:
        """float64 [C]: of the images taken for a class the share that is of it; NaN where there are none."""
        return _share(np.diag(self.confusion), self.confusion.sum(axis=0))


def evaluate(head: Head, images: Images) -> Evaluation | None:
    """Streams the images through the head, in bounded memory; None where there are no images."""
    if not len(images):
        return None
    classes = len(head.biases)
    confusion = np.zeros(classes * classes, np.int64)
    total, done = 0.0, 0
    mistakes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for bottlenecks, label_ids in stream.sequential(images):
        predicted, probabilities, losses = _predict(head, bottlenecks, label_ids)
        confusion += np.bincount(label_ids * np.int64(classes) + predicted, minlength=len(confusion))
        total += losses.sum(dtype=np.float64)
        wrong = np.flatnonzero(predicted != label_ids)
        mistakes.append((images.rows[done + wrong].astype(np.int64), predicted[wrong], probabilities[wrong]))
        done += len(predicted)
    rows, predicted, probabilities = (np.concatenate(column) for column in zip(*mistakes, strict=True))
    return Evaluation(done, total / done, confusion.reshape(classes, classes), rows, predicted, probabilities)


def _predict(head: Head, bottlenecks: np.ndarray, label_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each bottleneck [m, D]: the top-1 class int32 [m], its probability [m], the cross entropy [m].

    Plain numpy: on the hundred images behind a point of the learning curve, a call of a graph would cost more
    than the arithmetic, and on a whole set reading the shards costs more.
    """
    scores = bottlenecks.astype(np.float32, copy=False) @ head.weights + head.biases
    predicted = scores.argmax(axis=1).astype(np.int32)
    scores -= scores.max(axis=1, keepdims=True)  # no power overflows, and the top-1 class has power one
    sums = np.exp(scores).sum(axis=1)
    losses = np.log(sums) - scores[np.arange(len(scores)), label_ids]
    return predicted, 1 / sums, losses


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
