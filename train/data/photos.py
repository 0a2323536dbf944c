"""The photos themselves, for what bottlenecks cannot do: from image_dir if they are there, otherwise as thumbnails."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cache import thumbnails
from cache.errors import UserError
from cache.reader import Cache
from train.random_streams import RandomStream

CALIBRATION = 100  # training photos that an int8 file is calibrated on; more change little


@dataclass(frozen=True)
class Photo:
    """An image file."""

    row: int  # of the index
    encoded: bytes
    is_thumbnail: bool


def read(cache: Cache, rows: Sequence[int] | np.ndarray) -> Iterator[Photo]:
    """The photos at `rows` (int [n], of the index), in that order, one at a time.

    Photos that are gone come as their thumbnails, and those without one are left out.
    """
    numbers = np.asarray(rows, np.int64)
    is_gone = np.array([not os.path.isfile(_path(cache, row)) for row in numbers.tolist()], bool)
    # Thumbnails are so small that all may be in memory.
    small = dict(zip(numbers[is_gone].tolist(), thumbnails.find(cache, numbers[is_gone]), strict=True))
    for row in numbers.tolist():
        encoded = small[row] if row in small else content(cache, row)
        if encoded is not None:
            yield Photo(row, encoded, row in small)


def calibration_sample(cache: Cache, training: np.ndarray, seed: int) -> np.ndarray:
    """int64 [n]: up to CALIBRATION of the photos `training` (int [n], rows of the index), to calibrate int8 on.

    Raises UserError if there is a picture of none of them.
    """
    generator = np.random.default_rng([seed, RandomStream.CALIBRATION_SAMPLE])
    sample = generator.choice(training, min(CALIBRATION, len(training)), replace=False)
    if next(read(cache, sample), None) is None:
        raise UserError(
            f"int8 is calibrated on training photos, but {cache.index.image_dir} cannot be reached and the cache has "
            "no thumbnails; run `python -m extract --thumbnails` where the photos are, or choose float16"
        )
    return sample


def content(cache: Cache, row: int) -> bytes | None:
    """The photo's file from image_dir; None if it is no file, or cannot be read."""
    try:
        with open(_path(cache, row), "rb", opener=_without_waiting) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):  # ValueError: the path holds a null byte
        return None


def _path(cache: Cache, row: int) -> str:
    return os.path.join(cache.index.image_dir, cache.paths[row])


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file. Opening a pipe would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)
