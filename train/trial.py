"""One head that a run fitted in order to choose among several."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """A head's settings, and how good it was on the validation images. Numbers are not finite where it diverged."""

    l2: float  # the strength of the penalty on the weights
    learning_rate: float | None  # None: lbfgs, which has none
    class_weights: str  # "balanced" or "none"
    validation_accuracy: float | None  # None: no image fell into the validation set
    validation_cross_entropy: float | None  # in nats, the mean over images; over classes with --class_weights balanced
    chosen: bool
