"""How a run shows its progress: a bar on a terminal, lines elsewhere, and TensorBoard's curves and histograms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache import files
from cache.console import print
from cache.errors import UserError
from train.report import tensorboard

if TYPE_CHECKING:
    from train.result import Point
    from train.solvers.problem import Progress

LINES = 10  # of progress in a run, if no terminal shows a bar
HISTOGRAMS = 20  # of the weights and biases in a run
_REFITTED = ", refitted on training and validation photos"


class Watch:
    """A context in which to `show` each point of the learning curves. If `silent`, only TensorBoard shows them."""

    def __init__(self, logs_dir: Path, solver: str, silent: bool = False):
        self._logs_dir, self._is_logged, self._is_silent = logs_dir, True, silent
        with files.writing(logs_dir):
            self._train, self._validation = (tensorboard.writer(logs_dir / name) for name in ("train", "validation"))
        unit = " iterations" if solver == "lbfgs" else " steps"
        self._bar = tqdm(unit=unit, disable=silent or not sys.stderr.isatty())
        has_length = solver != "lbfgs"  # nobody knows how many iterations lbfgs will need
        self._lines, self._histograms = (_Occasions(times, has_length) for times in (LINES, HISTOGRAMS))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._log(self._train.close)
        self._log(self._validation.close)

    def show(self, point: Point, progress: Progress) -> None:
        """Shows `point`, which `progress` has reached."""
        self.draw([point])
        if self._histograms.reached_by(progress):
            layer = {"weights": progress.head.weights, "biases": progress.head.biases}
            self._log(lambda: tensorboard.histograms(self._train, point.step, layer))
        if not self._bar.disable:
            self._bar.total = progress.steps
            self._bar.set_postfix_str(_bar_text(point, progress), refresh=False)
            self._bar.update(point.step - self._bar.n)
        elif not self._is_silent and self._lines.reached_by(progress):
            print(_line(point, progress), flush=True)

    def draw(self, curve: Iterable[Point]) -> None:
        """Adds points to TensorBoard's curves."""
        for point in curve:
            train = point.train_accuracy, point.train_cross_entropy
            validation = point.validation_accuracy, point.validation_cross_entropy
            for writer, figures in ((self._train, train), (self._validation, validation)):
                self._log_figures(writer, point.step, *figures)

    def _log_figures(
        self, writer: tensorboard.Writer, step: int, accuracy: float | None, cross_entropy: float | None
    ) -> None:
        if accuracy is not None and cross_entropy is not None:
            figures = {"accuracy": accuracy, "cross_entropy": cross_entropy}
            self._log(lambda: tensorboard.scalars(writer, step, figures))

    def _log(self, write: Callable[[], None]) -> None:
        """Writes for TensorBoard. A full disk ends its curves, not the fit."""
        if not self._is_logged:
            return
        try:
            with files.writing(self._logs_dir):
                write()
        except UserError as error:
            self._is_logged = False
            tqdm.write(f"warning: {error}; TensorBoard's curves end here", file=sys.stderr)


class _Occasions:
    """The moments of a run to show something at: about `times` of them, the last step among them.

    If the run's length is unknown, they are after each fit among which one is chosen, and at the end of the last fit,
    which repeats the chosen one.
    """

    def __init__(self, times: int, has_length: bool):
        self._times, self._has_length, self._done = times, has_length, 0

    def reached_by(self, progress: Progress) -> bool:
        """Whether `progress` is the first since the last occasion that has reached a new one."""
        done = progress.step * self._times // (progress.steps or 1) if self._has_length else len(progress.grid)
        is_new, self._done = done > self._done, done
        return progress.is_last if progress.head_before_refit else is_new


def _bar_text(point: Point, progress: Progress) -> str:
    text = f"train {point.train_accuracy:.1%}, loss {point.train_cross_entropy:.3f}"
    return text + (_REFITTED if progress.head_before_refit else f", validation {_percent(point.validation_accuracy)}")


def _line(point: Point, progress: Progress) -> str:
    trial = progress.grid[-1] if progress.grid else None
    fit = ""
    if progress.head_before_refit:
        fit = _REFITTED
    elif trial and trial.learning_rate is None:
        fit = f", L2 {trial.l2:.2g}"
        if trial.class_weights != progress.grid[0].class_weights:
            fit += f", class weights {trial.class_weights}"
    line = (
        f"Step {point.step}{fit}: Train accuracy = {point.train_accuracy:.1%}, "
        f"Cross entropy = {point.train_cross_entropy:.6f}"
    )
    if progress.head_before_refit:
        return line
    count = progress.validation.count if progress.validation else 0
    return f"{line}, Validation accuracy = {_percent(point.validation_accuracy)} (N={count})"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
