"""Calibration: whether probabilities are as good as they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Calibration:
    """Photos by the probability of their top-1 class. Of B equally wide bins, b holds those in (b / B, (b + 1) / B]."""

    counts: np.ndarray  # int64 [B]: photos in the bin
    hits: np.ndarray  # int64 [B]: photos in the bin whose top-1 class is right
    sums: np.ndarray  # float64 [B]: the sum of their top-1 probabilities

    @property
    def accuracy(self) -> np.ndarray:
        """float64 [B]: the share of a bin's photos whose top-1 class is right; NaN for an empty bin."""
        return ratio(self.hits, self.counts)

    @property
    def confidence(self) -> np.ndarray:
        """float64 [B]: the mean top-1 probability of a bin's photos; NaN for an empty bin."""
        return ratio(self.sums, self.counts)

    @property
    def mean_confidence(self) -> float:
        """The mean top-1 probability of all photos, of which there must be some."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def error(self) -> float:
        """The expected calibration error, from 0 to 1: sum over b of counts_b / n * |accuracy_b - confidence_b|.

        Equation 3 of Guo et al., "On Calibration of Modern Neural Networks", 2017. There must be some photos.
        """
        return float(np.abs(self.hits - self.sums).sum() / self.counts.sum())

    @property
    def excess(self) -> float:
        """The mean top-1 probability minus the accuracy: positive for an overconfident classifier."""
        return float((self.sums.sum() - self.hits.sum()) / self.counts.sum())

    def doubtful_below(self, accuracy: float) -> float | None:
        """Below which top-1 probability an answer is doubtful: an edge of a bin, from 0 to 1.

        Of the photos below it less than the share `accuracy` is right, and it is the highest such edge. It is never
        lower than the lowest bin that has photos: below that nothing is known. None for a calibration of no photos.
        """
        if not self.counts.any():
            return None
        counts, hits = np.cumsum(self.counts), np.cumsum(self.hits)
        doubtful = np.flatnonzero((counts > 0) & (hits < accuracy * counts))
        edges = doubtful[-1] + 1 if len(doubtful) else np.flatnonzero(counts)[0]
        return float(edges / len(counts))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float64 [n]: `part` divided by `whole`; NaN where that is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
