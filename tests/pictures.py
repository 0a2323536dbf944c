"""Folders of small pictures for the tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16  # pixels: what the tests' modules take, so that nothing is resized and numpy can say what must come out


def noise(seed: int, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


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
