"""What a run that was stopped leaves behind, and how the next one goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache import reader
from cache.errors import UserError
from cache.reader import Cache
from train.settings import TrainSettings

if TYPE_CHECKING:
    from train.solvers import Progress

FILE = "interrupted.npz"
LAYOUT = 3  # of what the solvers keep to go on with, and of how they draw; 1 named none
# What may differ between the run that was stopped and the one that goes on.
_FREE = {"cache_dir", "output_dir", "module", "split", "device", "resume", "print_misclassified_test_images"}
_FREE |= {
    "summaries_dir",
    "test_batch_size",
    "tflite",
    "frozen_graph",
    "final_tensor_name",
    "intermediate_store_frequency",
}


def save(
    folder: Path, settings: TrainSettings, data: str, progress: Progress, points: Sequence[Sequence[float]]
) -> Path:
    """Writes `folder`/interrupted.npz: the best head so far, `weights` float32 [D, C] and `biases` float32 [C], and
    what the solver needs to go on. `data` is that of `digest`, `points` the learning curve. Raises OSError."""
    path = folder / FILE
    arrays: dict[str, Any] = {"weights": progress.head.weights, "biases": progress.head.biases}
    arrays |= {f"state_{name}": value for name, value in progress.state.items()}
    arrays |= {"run": np.array(_run(settings, data)), "points": np.array(points, np.float64)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(folder: Path, settings: TrainSettings, data: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The solver's state, and the points of the learning curve, float64 [P, 5].

    Raises UserError where there is nothing to go on from, or it belongs to other settings or images.
    """
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state = {name.removeprefix("state_"): arrays[name] for name in arrays.files if name.startswith("state_")}
            run, points = json.loads(arrays["run"].item()), arrays["points"]
    except FileNotFoundError:
        raise UserError(f"{path} is not there: no run was interrupted; leave --resume out") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} is damaged; delete it and leave --resume out") from None
    if run.get("layout") != LAYOUT:
        raise UserError(f"{path} was left by another version of this program; leave --resume out to begin anew")
    now = json.loads(_run(settings, data))
    for name in now:
        if run.get(name) != now[name]:
            if name == "data":
                raise UserError(
                    f"{path} was trained on other images, or on images split otherwise; leave --resume out to begin "
                    "anew"
                )
            value = run.get(name)
            given = f"--{name}" if isinstance(value, bool) else f"--{name} {value}"
            was = f"without --{name}" if value is None or value is False else f"with {given}"
            raise UserError(f"{path} belongs to a run {was}; do the same, or leave --resume out to begin anew")
    return state, points


def digest(cache: Cache, sets: np.ndarray, versions: Sequence[Cache], refits: bool) -> str:
    """Tells one training set from another: the backbones, the images, in which part each is (uint8 [N]), which of
    their distorted versions train, too, and whether validation images do in the end."""
    index = cache.index
    arrays = [index.paths.data, index.paths.offsets, index.sizes, index.mtimes, index.label_ids, sets]
    arrays += [reader.places(version, cache) for version in versions]
    found = hashlib.sha256(" ".join(one.module.fingerprint for one in (cache, *versions)).encode())
    found.update(bytes([refits]))
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _run(settings: TrainSettings, data: str) -> str:
    fixed = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    return json.dumps({**fixed, "data": data, "layout": LAYOUT})
