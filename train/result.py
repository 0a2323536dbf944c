"""A fit under way, what it results in, and both in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.console import print
from cache.reader import Cache
from train.data.dataset import Dataset
from train.settings import TrainSettings
from train.solvers.problem import Trial

if TYPE_CHECKING:
    from train.report.evaluate import Evaluation
    from train.report.temperature import Calibrated
    from train.solvers.head import Head
    from train.solvers.problem import Progress


@dataclass(frozen=True)
class Point:
    """The learning curves after `step` steps.

    Training figures are of the last batch, or with lbfgs of all images of the fit.
    """

    step: int
    train_accuracy: float
    train_cross_entropy: float
    validation_accuracy: float | None = None  # None: there are no validation photos, or they train, too
    validation_cross_entropy: float | None = None

    @classmethod
    def of(cls, progress: Progress) -> Point:
        """The point that a solver has reached."""
        validation = progress.validation
        return cls(
            progress.step,
            progress.accuracy,
            progress.cross_entropy,
            validation.accuracy if validation else None,
            validation.cross_entropy if validation else None,
        )

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> Point:
        """The inverse of `numbers`."""
        step, *others = numbers
        return cls(int(step), *(None if np.isnan(number) else number for number in others))  # type: ignore[arg-type]

    @property
    def numbers(self) -> list[float]:
        """The five fields as floats, NaN for None."""
        return [np.nan if value is None else value for value in astuple(self)]


@dataclass(frozen=True, eq=False)
class Fitting:
    """A fit under way."""

    settings: TrainSettings
    dataset: Dataset
    digest: str  # of the dataset
    curve: list[Point]  # so far

    def add(self, progress: Progress) -> Point | None:
        """Adds the point that `progress` has reached to the curve, unless sgd reached it for the caller alone."""
        interval = self.settings.eval_step_interval
        if self.settings.solver == "sgd" and progress.step % interval and not progress.is_last:
            return None
        if self.curve and self.curve[-1].step == progress.step:
            self.curve.pop()
        self.curve.append(Point.of(progress))
        return self.curve[-1]


@dataclass(frozen=True, eq=False)
class Result:
    """What a run of training results in."""

    settings: TrainSettings
    cache: Cache  # with the classes that were learned
    head: Head
    counts: tuple[int, int, int]  # photos that train, validate and test
    curve: Sequence[Point]
    seconds: float  # that the solver took, validation included
    validation: Evaluation | None = field(repr=False)  # on all validation photos; None: there are none
    is_refitted: bool  # on the validation photos, too; `validation` is then of the head before
    test: Evaluation | None = field(repr=False)  # None: there are no test photos
    calibrated: Calibrated = field(repr=False)  # the temperature, which the classifier itself does not use
    parts: np.ndarray = field(repr=False)  # uint8 [N]: the part of each photo, as in `split`
    grid: Sequence[Trial] = ()  # the heads among which one was chosen; empty for sgd, which chooses nothing
    exports: Mapping[str, Any] = field(default_factory=dict)  # by file name: what flags asked for beside the SavedModel

    @property
    def steps(self) -> int:
        """How many steps the solver took; with lbfgs, iterations of all its fits."""
        return self.curve[-1].step if self.curve else 0

    @property
    def how_fitted(self) -> str:
        """In words, such as `lbfgs, 45 iterations: L2 0.01 chosen from 7 fits`."""
        solver = self.settings.solver
        words = f"{solver}, {self.steps:,} {'iterations' if solver == 'lbfgs' else 'steps'}"
        chosen = next((trial for trial in self.grid if trial.chosen), None)
        if chosen is None:
            return words
        words += ": " if chosen.learning_rate is None else f": learning rate {chosen.learning_rate:g}, "
        words += f"L2 {chosen.l2:.2g}"
        if len({trial.class_weights for trial in self.grid}) > 1:
            words += f", class weights {chosen.class_weights}"
        if len(self.grid) > 1:
            words += f" chosen from {len(self.grid)} {'fits' if solver == 'lbfgs' else 'heads'}"
        if self.is_refitted:
            words += ", refitted on training and validation photos"
        return words


def final_line(result: Result) -> str:
    """The tutorial's last line, or why there is no accuracy."""
    if result.test is None:
        return (
            "Final test accuracy is unknown: no photo fell into the test set; raise --testing_percentage or add photos"
        )
    return f"Final test accuracy = {result.test.accuracy:.1%} (N={result.test.count})"


def print_mistakes(result: Result, folder: str = "") -> None:
    """Prints the path, below `folder`, and the predicted label of each test photo that the classifier gets wrong."""
    if result.test is None:
        return
    print("Misclassified test images:")  # the tutorial's line
    for row, label_id in zip(result.test.mistakes, result.test.predicted, strict=True):
        print(f"{os.path.join(folder, result.cache.paths[row])}  {result.cache.labels[label_id]}")
