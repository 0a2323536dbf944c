"""Makes thumbnails of the images in a cache's index that have none yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from cache import thumbnails
from cache.bar import bar
from cache.store import Index
from cache.thumbnails import SIDE, Thumbnails
from extract import decode

_QUALITY = 80  # of the JPEG: 2 kB a photo, and nobody sees at this size what is missing
_AT_ONCE = 64  # images between two looks at the clock


def make(directory: Path, index: Index, missing: np.ndarray, threads: int) -> int:
    """Commits thumbnails of the images `missing` (int64 [M], into `index`) to `directory`; returns how many.

    What cannot be read or decoded is passed over. Raises UserError when the cache cannot be written.
    """
    paths = index.paths.take(missing)

    def made() -> Iterator[Thumbnails]:
        with bar(desc="thumbnails", total=len(missing), unit=" images") as shown:
            for positions, jpegs in decode.each(index.image_dir, paths, thumbnail, threads, _AT_ONCE):
                yield thumbnails.of(index, missing[positions], jpegs.tolist())
                shown.update(int(positions[-1]) + 1 - shown.n)
            shown.update(len(missing) - shown.n)

    return thumbnails.write_all(directory, made())


def thumbnail(encoded: tf.Tensor) -> tf.Tensor:
    """An image file's bytes (string scalar) to those of a JPEG file (string scalar), upright, SIDE pixels long.

    An image that is smaller keeps its size. Raises tf.errors.InvalidArgumentError for what is no image.
    """
    image = decode.decode(encoded, SIDE, tf.reduce_max)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    shrunk = tf.round(size * tf.minimum(1.0, SIDE / tf.reduce_max(size)))
    # Averages over the pixels between, which bilinear interpolation alone would skip.
    image = tf.image.resize(image, tf.maximum(1, tf.cast(shrunk, tf.int32)), antialias=True)
    return tf.io.encode_jpeg(tf.saturate_cast(tf.round(image), tf.uint8), quality=_QUALITY, optimize_size=True)
