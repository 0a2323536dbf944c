"""Small pictures of photos, from the cache's thumbnails, or made of the photos if they can be read."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from cache import process, thumbnails
from cache.reader import Cache
from train.data import photos
from train.export.saved_model import load_backbone


def small(cache: Cache, rows: np.ndarray) -> list[bytes | None]:
    """A small upright JPEG file for each photo of `rows` (int [n], rows of the index), in that order.

    A photo that has no thumbnail in the cache is decoded by the cache's backbone, which thus shows what the extraction
    saw. None where the photo cannot be read or decoded, or the backbone is an older one without that function.
    Raises CacheError where the backbone is needed, and cannot be loaded.
    """
    pictures = thumbnails.find(cache, rows)
    backbone = None
    for place, row in enumerate(rows.tolist()):
        if pictures[place] is not None:
            continue
        content = photos.content(cache, row)
        if content is None:
            continue
        backbone = backbone or load_backbone(cache)  # takes seconds: once, and only if it is needed
        if not hasattr(backbone, "thumbnail"):
            break
        pictures[place] = _thumbnail(backbone, content)
    return pictures


def _thumbnail(backbone: tf.Module, content: bytes) -> bytes | None:
    try:
        with process.quiet_libraries(), tf.device("/CPU:0"):  # decoders run nowhere else
            return backbone.thumbnail(tf.constant(content)).numpy()
    except tf.errors.OpError:  # no image, or a broken one
        return None
