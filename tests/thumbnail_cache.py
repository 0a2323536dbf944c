"""Folders of random bottlenecks with thumbnails of noise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

import cache
from cache import layout, thumbnails
from cache.index import Index
from tests.random_cache import fill, rows

COUNT = 13  # photos


def jpeg(seed: int, size: tuple[int, int] = (12, 8)) -> bytes:
    """A small JPEG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def fill_with_thumbnails(directory: Path) -> tuple[Index, list[bytes]]:
    """Three shards, and the thumbnails of their 13 photos in files of four and nine.

    Returns the index, and the thumbnails in its order.
    """
    index, _ = fill(directory, [rows(5, 0), rows(1, 1), rows(7, 2)])
    jpegs = [jpeg(seed) for seed in range(COUNT)]
    for photos in (np.arange(4), np.arange(4, COUNT)):
        thumbnails.write(directory, [thumbnails.of(index, photos, [jpegs[i] for i in photos])])
    return index, jpegs


def find_all(directory: Path) -> list[bytes | None]:
    """The thumbnail of each photo, in the order of the index."""
    opened = cache.open(directory)
    return thumbnails.find(opened, np.arange(len(opened)))


def thumbnail_files(directory: Path) -> list[Path]:
    """The committed files of thumbnails, oldest first."""
    return [directory / layout.THUMBNAILS / name for name in thumbnails.names(directory)]
