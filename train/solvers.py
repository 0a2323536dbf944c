"""The three ways to fit the softmax layer. A solver is a generator: it trains, and yields its Progress now and then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from train.settings import TrainSettings
from train.trial import Trial

if TYPE_CHECKING:
    from train.head import Head
    from train.score import Score
    from train.stream import Images

# Arrays by name, from which a solver that was interrupted goes on.
State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """What is to be fitted, and how."""

    training: Images
    validation: Images  # may be empty
    settings: TrainSettings
    device: str  # TensorFlow's name of it
    together: Images | None = None  # training and validation images, for a last fit; None: there is none


@dataclass(frozen=True)
class Progress:
    """Where a solver is."""

    step: int
    steps: int | None  # of the whole run; None: nobody can tell
    accuracy: float  # of the last training batch; with lbfgs of all images that it fits, in its last fit `together`
    cross_entropy: float
    validation: Score | None = field(repr=False)  # of the head of this step; None: nothing can judge it
    head: Head = field(repr=False)  # the best so far, with which the run would end here
    grid: Sequence[Trial] = field(repr=False)  # what it was chosen from; empty where nothing is chosen
    state: State = field(repr=False)
    head_before_refit: Head | None = field(default=None, repr=False)  # in lbfgs's last fit: what was judged before it

    @property
    def is_last(self) -> bool:
        """Whether the steps are done; nobody can tell where `steps` is None."""
        return self.step == self.steps


def solve(problem: Problem, state: State | None = None) -> Iterator[Progress]:
    """Fits by the solver of the settings, from the start or from the `state` of an earlier Progress.

    The last Progress has the head that was asked for. Raises UserError for a learning rate that makes the cross entropy
    infinite.
    """
    if problem.settings.solver == "sgd":
        from train.sgd import sgd

        return sgd(problem, state)
    if problem.settings.solver == "sweep":
        from train.sweep import sweep

        return sweep(problem, state)
    from train.lbfgs import lbfgs

    return lbfgs(problem, state)
