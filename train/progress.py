"""How a run shows itself: a bar on a terminal, lines elsewhere, and TensorBoard's summaries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from train import summaries

if TYPE_CHECKING:
    from train.head import Head
    from train.run import Point

LINES = 10  # of progress in a run, where no terminal shows a bar
HISTOGRAMS = 20  # of the weights and biases in a run


class Watch:
    """Use it as a context; `show` each point of the learning curves."""

    def __init__(self, logs_dir: Path, steps: int):
        self._train, self._validation = (summaries.writer(logs_dir / name) for name in ("train", "validation"))
        self._steps = steps
        self._bar = tqdm(total=steps, unit="step", disable=not sys.stderr.isatty())
        self._lines, self._histograms = _Rhythm(steps, LINES), _Rhythm(steps, HISTOGRAMS)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._train.close()
        self._validation.close()

    def show(self, point: Point, head: Head, validated: int) -> None:
        """Tells of `point` and the head that made it; `validated` images are behind its validation accuracy."""
        _scalars(self._train, point.step, point.train_accuracy, point.train_cross_entropy)
        _scalars(self._validation, point.step, point.validation_accuracy, point.validation_cross_entropy)
        if self._histograms.due(point.step):
            summaries.histograms(self._train, point.step, {"weights": head.weights, "biases": head.biases})
        train, validation = f"{point.train_accuracy:.1%}", _percent(point.validation_accuracy)
        if not self._bar.disable:
            text = f"train {train}, loss {point.train_cross_entropy:.3f}, validation {validation}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(point.step - self._bar.n)
        elif self._lines.due(point.step):
            print(
                f"Step {point.step}: Train accuracy = {train}, Cross entropy = {point.train_cross_entropy:.6f}, "
                f"Validation accuracy = {validation} (N={validated})",
                flush=True,
            )


class _Rhythm:
    """Is due about `times` times within `steps` steps, the last one included."""

    def __init__(self, steps: int, times: int):
        self._steps, self._times, self._done = steps, times, 0

    def due(self, step: int) -> bool:
        share = step * self._times // self._steps
        due = share > self._done
        self._done = share
        return due


def _scalars(writer: summaries.Writer, step: int, accuracy: float | None, cross_entropy: float | None) -> None:
    if accuracy is not None and cross_entropy is not None:
        summaries.scalars(writer, step, {"accuracy": accuracy, "cross_entropy": cross_entropy})


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
