"""Photos to measure with: an even sample of a folder, copied beside one another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Options
from cache.errors import UserError
from extract.images import Images, list_images

_JPEG_OR_PNG = (b"\xff\xd8\xff", b"\x89PNG")  # what every reference reads


def sample(options: Options, count: int) -> Images:
    """About `count` photos of all classes alike, as a folder of their own: Keras takes whole folders only.

    Raises UserError for a folder that has no photos.
    """
    assert options.photos is not None
    target = options.scratch / f"photos-{count}"
    if not target.exists():
        images = list_images(options.photos)
        places = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int))
        for place in places:
            source, copy = options.photos / images.paths[int(place)], target / images.paths[int(place)]
            if _is_photo(source):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        if not target.exists():
            raise UserError(f"--image_dir {options.photos} has no JPEG or PNG file; give a folder of photos")
    return list_images(target)


def files(images: Images) -> list[str]:
    """The whole paths."""
    return [str(images.image_dir / path) for path in images.paths]


def big(options: Options, count: int, megapixels: float) -> Images:
    """`count` JPEGs as a camera makes them, enlarged from photos: as much to decode, and real edges and textures."""
    from PIL import Image

    target = options.scratch / "big"
    for number, source in enumerate(_cycle(files(sample(options, count)), count)):
        copy = target / f"class {number % 2}" / f"{number:03}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as picture:
            width, height = picture.size
            factor = (megapixels * 1e6 / (width * height)) ** 0.5
            size = round(width * factor), round(height * factor)
            picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(copy, quality=92)
    return list_images(target)


def _cycle(items: list[str], count: int) -> Iterator[str]:
    return (items[number % len(items)] for number in range(count))


def _is_photo(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8).startswith(_JPEG_OR_PNG)
