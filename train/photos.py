"""The images themselves, for what bottlenecks cannot do: from image_dir where they can be reached, else thumbnails."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cache import thumbnails
from cache.errors import UserError
from cache.reader import Cache

SAMPLES = 100  # training images that a file of 8-bit numbers is calibrated on; more change little


@dataclass(frozen=True)
class Photo:
    """An image file."""

    row: int  # of the index
    encoded: bytes
    is_thumbnail: bool


def read(cache: Cache, rows: Sequence[int] | np.ndarray) -> Iterator[Photo]:
    """The images at `rows` (int [n], of the index), in that order; those that there is no picture of are left out."""
    # So few bytes each that they may all be in memory. The photos are read one at a time.
    paths = {row: _path(cache, row) for row in np.asarray(rows).tolist()}
    absent = np.array([row for row, path in paths.items() if path is None or not os.path.isfile(path)], np.int64)
    small = dict(zip(absent.tolist(), thumbnails.find(cache, absent), strict=True))
    for row in np.asarray(rows).tolist():
        encoded = small[row] if row in small else content(cache, row)
        if encoded is not None:
            yield Photo(row, encoded, row in small)


def samples(cache: Cache, training: np.ndarray, seed: int) -> np.ndarray:
    """int64 [n]: up to SAMPLES of the images `training` (int [n], rows of the index), to calibrate int8 on.

    Raises UserError where none of them can be seen.
    """
    chosen = np.random.default_rng([seed, 4]).choice(training, min(SAMPLES, len(training)), replace=False)
    if next(read(cache, chosen), None) is None:
        raise UserError(
            f"int8 is calibrated on training images, and {cache.index.image_dir} cannot be reached and the cache has "
            "no thumbnails; run `python -m extract --thumbnails` where the photos are, or choose float16"
        )
    return chosen


def content(cache: Cache, row: int) -> bytes | None:
    """The image's file from image_dir; None where it cannot be read, or lies elsewhere: a cache from somewhere else
    might name any file of this machine."""
    path = _path(cache, row)
    if path is None:
        return None
    try:
        with open(path, "rb", opener=_at_once) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):  # ValueError: the path holds a null byte
        return None


def _path(cache: Cache, row: int) -> str | None:
    path = cache.paths[row]
    inside = not os.path.isabs(path) and os.pardir not in path.split("/")
    return os.path.join(cache.index.image_dir, path) if inside else None


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting, as opening a pipe would, for ever."""
    return os.open(path, flags | os.O_NONBLOCK)
