"""Photos to measure with: an even sample of a folder, copied into a folder of its own."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np

from benchmarks.measure import Options
from cache.errors import UserError
from cache.photos import Photos
from extract.sources.folder import list_photos

_JPEG_OR_PNG = (b"\xff\xd8\xff", b"\x89PNG")  # the first bytes of what every reference can read


def sample(options: Options, count: int) -> Photos:
    """Up to `count` JPEG or PNG photos, spread evenly over the listing and so over the classes.

    They are copied, because Keras's loader takes whole folders only. Raises UserError for a folder without photos.
    """
    assert options.photos is not None
    target = options.scratch / f"photos-{count}"
    if not target.exists():
        listed = list_photos(options.photos)
        positions = np.unique(np.linspace(0, len(listed) - 1, min(count, len(listed))).astype(int))
        for position in positions.tolist():
            source, copy = options.photos / listed.paths[position], target / listed.paths[position]
            if _is_photo(source):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        if not target.exists():
            raise UserError(f"--image_dir {options.photos} has no JPEG or PNG file; give a folder of photos")
    return list_photos(target)


def files(photos: Photos) -> list[str]:
    """The paths of the photos with image_dir in front."""
    return [str(photos.image_dir / path) for path in photos.paths]


def big(options: Options, count: int, megapixels: float) -> Photos:
    """`count` JPEGs of the size that a camera makes, enlarged from photos: they have real edges and textures."""
    from PIL import Image

    target = options.scratch / "big"
    sources = itertools.cycle(files(sample(options, count)))
    for number, source in enumerate(itertools.islice(sources, count)):
        copy = target / f"class {number % 2}" / f"{number:03}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            width, height = image.size
            factor = (megapixels * 1e6 / (width * height)) ** 0.5
            size = round(width * factor), round(height * factor)
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(copy, quality=92)
    return list_photos(target)


def _is_photo(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8).startswith(_JPEG_OR_PNG)
