"""One of the heads that a solver chooses from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """What a head was fitted with, and how good it is on the validation images."""

    l2: float
    learning_rate: float | None  # None: lbfgs, which has none
    class_weights: str  # "balanced" or "none"
    validation_accuracy: float | None  # None: no validation image, or the head diverged
    validation_cross_entropy: float | None
    chosen: bool
