"""How good a head is on a set of images, where it errs, and whether its probabilities can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train import stream
from train.head import Head
from train.stream import Images

BINS = 15  # of the top-1 probability, equally wide, as in the papers that report the calibration error


@dataclass(frozen=True)
class Calibration:
    """The images by the probability of their top-1 class: bin b holds those in (b / BINS, (b + 1) / BINS]."""

    counts: np.ndarray  # int64 [BINS]: images
    hits: np.ndarray  # int64 [BINS]: of these, the ones that were recognised
    sums: np.ndarray  # float64 [BINS]: their top-1 probabilities, added up

    @property
    def accuracy(self) -> np.ndarray:
        """float64 [BINS]: the share that was recognised; NaN for an empty bin."""
        return _share(self.hits, self.counts)

    @property
    def confidence(self) -> np.ndarray:
        """float64 [BINS]: the mean top-1 probability; NaN for an empty bin."""
        return _share(self.sums, self.counts)

    @property
    def error(self) -> float:
        """The expected calibration error, from 0 to 1: |accuracy - confidence|, averaged over all images.

        Equation 3 of Guo et al., "On Calibration of Modern Neural Networks", 2017.
        """
        return float(np.abs(self.hits - self.sums).sum() / self.counts.sum())

    @property
    def excess(self) -> float:
        """How much surer the classifier is than it is right, on average; below 0 where it is too modest."""
        return float((self.sums.sum() - self.hits.sum()) / self.counts.sum())


@dataclass(frozen=True)
class Evaluation:
    """What a head does on n > 0 images. The columns of mistakes have one entry per wrong image."""

    count: int  # n
    cross_entropy: float  # mean, in nats
    confusion: np.ndarray  # int64 [C, C]: images of class (row) that were taken for class (column)
    calibration: Calibration
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
    bins = np.zeros((3, BINS))  # counts, hits, sums; float64 counts exactly to 2^53
    total, done = 0.0, 0
    mistakes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for bottlenecks, label_ids in stream.sequential(images):
        predicted, probabilities, losses = _predict(head, bottlenecks, label_ids)
        confusion += np.bincount(label_ids * np.int64(classes) + predicted, minlength=len(confusion))
        bins += _bins(probabilities, predicted == label_ids)
        total += losses.sum(dtype=np.float64)
        wrong = np.flatnonzero(predicted != label_ids)
        mistakes.append((images.rows[done + wrong].astype(np.int64), predicted[wrong], probabilities[wrong]))
        done += len(predicted)
    rows, predicted, probabilities = (np.concatenate(column) for column in zip(*mistakes, strict=True))
    calibration = Calibration(bins[0].astype(np.int64), bins[1].astype(np.int64), bins[2])
    return Evaluation(
        done, total / done, confusion.reshape(classes, classes), calibration, rows, predicted, probabilities
    )


def _predict(head: Head, bottlenecks: np.ndarray, label_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each bottleneck [m, D]: the top-1 class int32 [m], its probability [m], the cross entropy [m].

    Plain numpy: reading the shards costs more than this arithmetic.
    """
    scores = bottlenecks.astype(np.float32, copy=False) @ head.weights + head.biases
    predicted = scores.argmax(axis=1).astype(np.int32)
    scores -= scores.max(axis=1, keepdims=True)  # no power overflows, and the top-1 class has power one
    sums = np.exp(scores).sum(axis=1)
    losses = np.log(sums) - scores[np.arange(len(scores)), label_ids]
    return predicted, 1 / sums, losses


def _bins(probabilities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 [3, BINS]: how many images fall into each bin of `Calibration`, how many `right` ones, the sums."""
    places = np.clip(np.ceil(probabilities * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return np.stack([np.bincount(places, weights, BINS) for weights in (None, right, probabilities)])


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
