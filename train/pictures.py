"""Small pictures of a cache's images: out of the cache, or out of the photos where they are still there."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from cache import thumbnails
from cache.reader import Cache
from cache.thumbnails import SIDE
from train import photos

# The orientation in a JPEG's EXIF block, for either byte order: the first directory's entries of 12 bytes, up to
# the one with tag 0x0112, type 3 (short), count 1 (EXIF 2.32, section 4.6). The block stands at the file's start.
_ORIENTATION = tuple(
    re.compile(rb"Exif\0\0" + pattern, re.DOTALL)
    for pattern in (
        rb"II\*\0\x08\0\0\0..(?:.{12}){0,60}?\x12\x01\x03\0\x01\0\0\0([\x01-\x08])\0",
        rb"MM\0\*\0\0\0\x08..(?:.{12}){0,60}?\x01\x12\0\x03\0\0\0\x01\0([\x01-\x08])",
    )
)
_EXIF_BYTES = 1024


def small(cache: Cache, rows: np.ndarray) -> list[bytes | None]:
    """A JPEG file of up to SIDE pixels for each image of `rows` (int [n], rows of the index), in that order.

    None where the cache has no thumbnail, and the photo is not in image_dir any more or cannot be decoded.
    """
    found = zip(rows.tolist(), thumbnails.find(cache, rows), strict=True)
    return [_from_photo(photos.content(cache, row)) if picture is None else picture for row, picture in found]


def _from_photo(content: bytes | None) -> bytes | None:
    try:
        return None if content is None else _shrink(content)
    except tf.errors.OpError:
        return None


def _shrink(content: bytes) -> bytes:
    """Raises tf.errors.OpError for what is no image."""
    image = _upright(_decode(content), _orientation(content))
    longer = max(image.shape)
    if longer > SIDE:
        size = [max(1, round(side * SIDE / longer)) for side in image.shape[:2]]  # a line stays one
        shrunk = tf.image.resize(image, size, antialias=True)
        image = tf.cast(tf.round(tf.clip_by_value(shrunk, 0, 255)), tf.uint8)
    return tf.io.encode_jpeg(image, quality=85).numpy()


def _decode(content: bytes) -> np.ndarray:
    """uint8 [h, w, 3]; of a large JPEG no more than what is left of it at twice SIDE."""
    if content[:3] != b"\xff\xd8\xff":
        return tf.io.decode_image(content, channels=3, expand_animations=False).numpy()
    sides = tf.io.extract_jpeg_shape(content).numpy()[:2]
    ratio = next((r for r in (8, 4, 2) if sides.max() >= 2 * SIDE * r), 1)
    return tf.io.decode_jpeg(content, channels=3, ratio=ratio).numpy()


def _orientation(content: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none."""
    matches = (pattern.search(content[:_EXIF_BYTES]) for pattern in _ORIENTATION)
    return next((match[1][0] for match in matches if match), 1)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes it: 5 to 8 are 1 to 4 of the transposed image; 2 mirrors, 3 turns, 4 flips."""
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    turn = (orientation - 1) % 4
    if turn in (1, 2):
        image = image[:, ::-1]
    return image[::-1] if turn > 1 else image
