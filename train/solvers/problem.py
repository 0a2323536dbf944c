"""The types of solvers: the problem that they take, and the progress that they yield."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from train.settings import TrainSettings

if TYPE_CHECKING:
    from train.data.batches import Images
    from train.solvers.head import Head
    from train.solvers.score import Score

# The arrays, by name, from which an interrupted solver goes on. The one named "step" is its step.
State: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Problem:
    """What to fit, and how."""

    training: Images
    validation: Images  # may be empty
    settings: TrainSettings
    device: str  # by TensorFlow's name
    training_and_validation: Images | None = None  # for lbfgs's last fit; None: no last fit


@dataclass(frozen=True)
class Trial:
    """The settings of one head among which a solver chooses, and how good it was on the validation photos.

    Numbers are not finite where the fit diverged.
    """

    l2: float  # strength of the penalty on the weights
    learning_rate: float | None  # None for lbfgs, which has none
    class_weights: str  # "balanced" or "none"
    validation_accuracy: float | None  # None: there are no validation photos
    validation_cross_entropy: float | None  # in nats, mean over photos; over classes with --class_weights balanced
    chosen: bool


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a solver is."""

    step: int
    steps: int | None  # of the whole run; None: not known yet
    accuracy: float  # on the last training batch; for lbfgs on all images of the fit
    cross_entropy: float
    validation: Score | None = field(repr=False)  # of this step's head; None: no photos to validate on
    head: Head = field(repr=False)  # the best so far, with which the run would end here
    grid: Sequence[Trial] = field(repr=False)  # among which the best was chosen; empty for sgd, which chooses nothing
    state: State = field(repr=False)
    head_before_refit: Head | None = field(default=None, repr=False)  # in lbfgs's last fit: the head that was validated

    @property
    def is_last(self) -> bool:
        return self.step == self.steps
