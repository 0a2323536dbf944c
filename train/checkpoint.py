"""What an interrupted run leaves behind, and how the next one goes on from there."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from cache import files
from cache.console import Interrupted
from cache.errors import CacheError, UserError
from train.result import Fitting, Point
from train.settings import TrainSettings

if TYPE_CHECKING:
    from train.solvers.problem import Progress, State

FILE = "interrupted.npz"
# Of the names of the settings, of the solvers' states, and of how they draw: another version's cannot be resumed.
VERSION = 4
# Settings that may differ between the run that was interrupted and the one that resumes it.
_MAY_DIFFER = {
    "cache_dir",
    "output_dir",
    "module",
    "split",
    "device",
    "resume",
    "print_misclassified_test_images",
    "summaries_dir",
    "test_batch_size",
    "tflite",
    "frozen_graph",
    "final_tensor_name",
    "intermediate_store_frequency",
}


class Checkpoint:
    """A context in which Ctrl-C saves the progress that `keep` got last, and becomes Interrupted.

    The message of Interrupted says how to go on. Before the first progress, KeyboardInterrupt passes unchanged.
    """

    def __init__(self, settings: TrainSettings):
        self._settings = settings
        self._progress: Progress | None = None
        self._fitting: Fitting | None = None

    def keep(self, progress: Progress, fitting: Fitting) -> None:
        """Keeps the progress in memory. A solver cannot go on from its last one, so the one before it stays."""
        if not progress.is_last:
            self._progress, self._fitting = progress, fitting

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._progress and self._fitting:
            raise Interrupted(self._save(self._progress, self._fitting)) from None

    def _save(self, progress: Progress, fitting: Fitting) -> str:
        # The curve up to where the solver goes on. With lbfgs that is where the current fit began.
        curve = [point for point in fitting.curve if point.step <= int(progress.state["step"])]
        try:
            path = save(self._settings, fitting.digest, progress, curve)
        except UserError as error:
            return f"interrupted, and nothing is saved: {error}"
        return (
            f"interrupted after step {progress.step:,}; the best head so far is in {path}; the same command with "
            "--resume goes on from there"
        )


def save(settings: TrainSettings, digest: str, progress: Progress, curve: Sequence[Point]) -> Path:
    """Writes interrupted.npz into output_dir and returns its path.

    It holds the best head so far, `weights` float32 [D, C] and `biases` float32 [C], and what the solver needs to go
    on. `digest` is the dataset's. Raises UserError when it cannot be written.
    """
    arrays: dict[str, Any] = {"weights": progress.head.weights, "biases": progress.head.biases}
    arrays |= {f"state_{name}": value for name, value in progress.state.items()}
    points = np.array([point.numbers for point in curve], np.float64)
    arrays |= {"run": np.array(json.dumps(_description(settings, digest))), "points": points}
    path = settings.output_dir / FILE
    with files.replacing(path) as file:
        np.savez(file, **arrays)
    return path


def load(settings: TrainSettings, digest: str) -> tuple[State, list[Point]]:
    """The solver's state and the learning curve that an interrupted run saved in output_dir.

    Raises UserError if there is none, or it belongs to other settings or photos.
    """
    path = settings.output_dir / FILE
    try:
        files.check_regular(path)
        with np.load(path, allow_pickle=False) as arrays:
            state = {name.removeprefix("state_"): arrays[name] for name in arrays.files if name.startswith("state_")}
            saved, points = json.loads(arrays["run"].item()), arrays["points"]
    except FileNotFoundError:
        raise UserError(f"{path} is not there: no run was interrupted; leave --resume out") from None
    except (CacheError, OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} is damaged; delete it and leave --resume out") from None
    if saved.get("layout") != VERSION:
        raise UserError(f"{path} was left by another version of this program; leave --resume out to begin anew")
    for name, value in _description(settings, digest).items():
        if saved.get(name) == value:
            continue
        if name == "data":
            raise UserError(
                f"{path} was trained on other photos, or on photos split otherwise; leave --resume out to begin anew"
            )
        flag = _flag(name, saved.get(name))
        raise UserError(f"{path} belongs to a run {flag}; do the same, or leave --resume out to begin anew")
    return state, [Point.of_numbers(numbers) for numbers in points.tolist()]


def _description(settings: TrainSettings, digest: str) -> dict[str, Any]:
    """What must be the same in the run that resumes, as JSON has it."""
    fixed = {name: value for name, value in asdict(settings).items() if name not in _MAY_DIFFER}
    return {**fixed, "data": digest, "layout": VERSION}


def _flag(name: str, value: Any) -> str:
    """In words, whether and with what value a run had a flag."""
    if value is None or value is False:
        return f"without --{name}"
    return f"with --{name}" if value is True else f"with --{name} {value}"
