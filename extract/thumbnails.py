"""Thumbnails: the graph function that makes one, and the loop that makes those which a cache lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from cache import thumbnails
from cache.bar import bar
from cache.index import Index
from cache.thumbnails import SIDE, Thumbnails
from extract.batches import each
from extract.decode import decode

_QUALITY = 80  # of the JPEG: 2 kB a photo, and no visible loss at this size
_CHUNK = 64  # photos after which it may be time for a commit


def make(directory: Path, index: Index, missing: np.ndarray, threads: int) -> int:
    """Commits thumbnails of the photos `missing` (int64 [M], rows of `index`) to `directory`; returns how many.

    Photos that cannot be read or decoded are left out. Raises UserError when the cache cannot be written.
    """
    paths = index.paths.take(missing)

    def made() -> Iterator[Thumbnails]:
        with bar(desc="thumbnails", total=len(missing), unit=" photos") as shown:
            for positions, jpegs in each(index.image_dir, paths, thumbnail, threads, _CHUNK):
                yield thumbnails.of(index, missing[positions], jpegs.tolist())
                shown.update(int(positions[-1]) + 1 - shown.n)
            shown.update(len(missing) - shown.n)

    return thumbnails.write_all(directory, made())


def thumbnail(encoded: tf.Tensor) -> tf.Tensor:
    """The bytes of an image file (string scalar) to the bytes of an upright JPEG (string scalar), SIDE pixels long.

    A smaller image keeps its size. Raises tf.errors.InvalidArgumentError for what is no image.
    """
    image = decode(encoded, SIDE, tf.reduce_max)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    shrunk = tf.round(size * tf.minimum(1.0, SIDE / tf.reduce_max(size)))
    # With antialiasing: bilinear interpolation alone would skip the pixels in between.
    image = tf.image.resize(image, tf.maximum(1, tf.cast(shrunk, tf.int32)), antialias=True)
    return tf.io.encode_jpeg(tf.saturate_cast(tf.round(image), tf.uint8), quality=_QUALITY, optimize_size=True)
