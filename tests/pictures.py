"""Small pictures for the tests, folders of them, and the tutorial's photos of flowers."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.processes import REPO

FLOWERS = REPO.parent / "shared" / "flower_photos"  # some 300 of each of five kinds; not on every machine
SIDE = 16  # pixels: what the tests' modules take, so that nothing is resized and numpy can compute what must come out
TICK = 0.05  # seconds after which a file counts as older: the clock that stamps files ticks every 10 ms or so


def noise(seed: int, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def smooth(width: int, height: int) -> Image.Image:
    """A picture of which JPEG loses little, and whose corners and channels all differ."""
    x, y = np.meshgrid(np.linspace(0, 220, width), np.linspace(0, 220, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=-1).astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow makes of a picture."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write_picture(path: Path, seed: int) -> Path:
    """A PNG of noise; another seed is another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path, "PNG")
    return path


def make_folder(root: Path, classes: dict[str, int], first_seed: int = 0) -> Path:
    """`root` with so many pictures of each class."""
    seed = first_seed
    for name, count in classes.items():
        for number in range(count):
            write_picture(root / name / f"{number:03}.png", seed)
            seed += 1
    return root


def pixels(path: os.PathLike) -> np.ndarray:
    """uint8 [h, w, 3], as Pillow reads them."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
