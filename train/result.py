"""What a run of training found, and the words that tell it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.reader import Cache
from train.markup import printable
from train.settings import TrainSettings
from train.trial import Trial

if TYPE_CHECKING:
    from train.evaluate import Evaluation
    from train.head import Head
    from train.solvers import Progress


@dataclass(frozen=True)
class Point:
    """The learning curves after `step` steps: on the last training batch (with lbfgs on all images that it fits), and
    on validation images."""

    step: int
    train_accuracy: float
    train_cross_entropy: float
    validation_accuracy: float | None = None  # None: no image fell into the validation set, or these train, too
    validation_cross_entropy: float | None = None

    @classmethod
    def of(cls, progress: Progress) -> Point:
        """The point that a solver has reached."""
        train, validation = (progress.step, progress.accuracy, progress.cross_entropy), progress.validation
        return cls(*train, validation.accuracy, validation.cross_entropy) if validation else cls(*train)

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> Point:
        """From what `numbers` returns."""
        step, *others = numbers
        return cls(int(step), *(None if np.isnan(number) else number for number in others))  # type: ignore[arg-type]

    @property
    def numbers(self) -> list[float]:
        """The five as floats, NaN for None."""
        return [np.nan if value is None else value for value in astuple(self)]


@dataclass(frozen=True)
class Result:
    """What a run of training found."""

    settings: TrainSettings
    cache: Cache
    head: Head
    counts: tuple[int, int, int]  # images that train, validate and test
    curve: Sequence[Point]
    seconds: float  # that the solver took, validation included
    validation: Evaluation | None = field(repr=False)  # on the whole validation set; None: it is empty
    is_refitted: bool  # to the validation images, too: `validation` is that of the head before
    test: Evaluation | None = field(repr=False)  # None: the test set is empty
    sets: np.ndarray = field(repr=False)  # uint8 [N], what each image is for; see `split`
    grid: Sequence[Trial] = ()  # the heads that it chose among; empty: it fitted one
    exports: Mapping[str, Any] = field(default_factory=dict)  # by file, what was asked for beside the SavedModel

    @property
    def steps(self) -> int:
        """How many steps the solver took; with lbfgs iterations, of all its fits."""
        return self.curve[-1].step if self.curve else 0

    @property
    def how_fitted(self) -> str:
        """In words, such as `lbfgs, 45 iterations: L2 0.01 chosen from 7 fits`."""
        solver = self.settings.solver
        told = f"{solver}, {self.steps:,} {'iterations' if solver == 'lbfgs' else 'steps'}"
        chosen = next((trial for trial in self.grid if trial.chosen), None)
        if chosen is None:
            return told
        told += ": " if chosen.learning_rate is None else f": learning rate {chosen.learning_rate:g}, "
        told += f"L2 {chosen.l2:.2g}"
        if len({trial.class_weights for trial in self.grid}) > 1:
            told += f", class weights {chosen.class_weights}"
        if len(self.grid) > 1:
            told += f" chosen from {len(self.grid)} {'fits' if solver == 'lbfgs' else 'heads'}"
        return told + ", refitted with the validation images" * self.is_refitted


def final_line(result: Result) -> str:
    """The tutorial's last line, or why it cannot be told."""
    if result.test is None:
        return (
            "Final test accuracy cannot be told: no image fell into the test set; raise --testing_percentage "
            "or add images"
        )
    return f"Final test accuracy = {result.test.accuracy:.1%} (N={result.test.count})"


def tell_mistakes(result: Result, folder: str = "") -> None:
    """Prints the path, below `folder`, and the predicted label of each test image that is taken for another class's."""
    if result.test is None:
        return
    print("Misclassified test images:")
    for row, label_id in zip(result.test.mistakes, result.test.predicted, strict=True):
        print(f"{printable(os.path.join(folder, result.cache.paths[row]))}  {result.cache.labels[label_id]}")
