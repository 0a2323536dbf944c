"""How a run shows itself: a bar on a terminal, lines elsewhere, and TensorBoard's summaries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache.errors import UserError
from train import export, summaries

if TYPE_CHECKING:
    from train.result import Point
    from train.solvers import Progress

LINES = 10  # of progress in a run, where no terminal shows a bar
HISTOGRAMS = 20  # of the weights and biases in a run


class Watch:
    """Use it as a context; `show` each point of the learning curves. If `silent`, TensorBoard alone shows them."""

    def __init__(self, logs_dir: Path, solver: str, silent: bool = False):
        self._logs_dir, self._is_logged, self._silent = logs_dir, True, silent
        with export.writing(logs_dir):
            self._train, self._validation = (summaries.writer(logs_dir / name) for name in ("train", "validation"))
        unit = " iterations" if solver == "lbfgs" else " steps"
        self._bar = tqdm(unit=unit, disable=silent or not sys.stderr.isatty())
        self._lines, self._histograms = (_Rhythm(times, solver == "lbfgs") for times in (LINES, HISTOGRAMS))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._log(self._train.close)
        self._log(self._validation.close)

    def show(self, point: Point, progress: Progress) -> None:
        """Tells of `point`, which was reached by `progress`."""
        self.draw(point)
        if self._histograms.due(progress):
            layer = {"weights": progress.head.weights, "biases": progress.head.biases}
            self._log(lambda: summaries.histograms(self._train, point.step, layer))
        train, refits = f"{point.train_accuracy:.1%}", progress.head_before_refit is not None
        if not self._bar.disable:
            self._bar.total = progress.steps
            validation = "trains, too" if refits else _percent(point.validation_accuracy)
            text = f"train {train}, loss {point.train_cross_entropy:.3f}, validation {validation}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(point.step - self._bar.n)
        elif not self._silent and self._lines.due(progress):
            count = progress.validation.count if progress.validation else 0
            last = progress.grid[-1] if progress.grid else None
            strength, validation = "", f"Validation accuracy = {_percent(point.validation_accuracy)} (N={count})"
            if refits:
                strength, validation = ", refitted", "Validation images train, too"
            elif last and last.learning_rate is None:
                other = last.class_weights != progress.grid[0].class_weights
                strength = f", L2 {last.l2:.2g}" + f", class weights {last.class_weights}" * other
            print(
                f"Step {point.step}{strength}: Train accuracy = {train}, "
                f"Cross entropy = {point.train_cross_entropy:.6f}, {validation}",
                flush=True,
            )

    def draw(self, point: Point) -> None:
        """Adds it to TensorBoard's curves."""
        validation = point.validation_accuracy, point.validation_cross_entropy
        self._log(lambda: _scalars(self._train, point.step, point.train_accuracy, point.train_cross_entropy))
        self._log(lambda: _scalars(self._validation, point.step, *validation))

    def _log(self, write: Callable[[], None]) -> None:
        """A full disk ends the curves, and not the fit."""
        if not self._is_logged:
            return
        try:
            with export.writing(self._logs_dir):
                write()
        except UserError as error:
            self._is_logged = False
            tqdm.write(f"warning: {error}; TensorBoard's curves end here", file=sys.stderr)


class _Rhythm:
    """When to tell of a run's progress: about `times` times, the last step among them.

    With `is_open` nobody knows how many steps there will be. Then it is after each fit that a head is chosen from, and
    at the end of the last one, which repeats the best.
    """

    def __init__(self, times: int, is_open: bool):
        self._times, self._open, self._done = times, is_open, 0

    def due(self, progress: Progress) -> bool:
        done = len(progress.grid) if self._open else progress.step * self._times // (progress.steps or 1)
        due = progress.is_last if progress.head_before_refit else done > self._done
        self._done = done
        return due


def _scalars(writer: summaries.Writer, step: int, accuracy: float | None, cross_entropy: float | None) -> None:
    if accuracy is not None and cross_entropy is not None:
        summaries.scalars(writer, step, {"accuracy": accuracy, "cross_entropy": cross_entropy})


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
