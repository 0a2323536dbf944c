"""What the tests of augmentations share: how they are made, read and compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import cache
from cache import layout, reader
from extract.run import Result, extract
from extract.settings import Settings

ALL = {"flip_left_right": True, "random_crop": 30, "random_scale": 40, "random_brightness": 50}
CHOICES = {"engine": "tensorflow", "precision": "float32", "dtype": "float32", "batch_size": 4, "augment": 2, **ALL}
FLAGS = [f"--{name}" if value is True else f"--{name}={value}" for name, value in CHOICES.items()]

Vectors = Mapping[str, np.ndarray]  # the bottleneck of each photo, by its path


def make(root: Path, module: str, **options: object) -> Result:
    """Extracts `root`/photos into `root`/cache, with two augmentations, or as the `options` say."""
    settings = {"image_dir": str(root / "photos"), "cache_dir": str(root / "cache"), "module": module}
    return extract(Settings(**(settings | CHOICES | options)))  # type: ignore[arg-type]


def forget(directory: Path) -> None:
    """Deletes all bottlenecks from a backbone's folder."""
    for folder in (layout.SHARDS, layout.AUGMENTATIONS):
        shutil.rmtree(directory / folder)
    (directory / layout.INDEX).unlink()


def vectors(opened: cache.Cache) -> Vectors:
    return dict(zip(opened.paths, opened.bottlenecks(np.arange(len(opened))), strict=True))


def augmentations(directory: Path) -> list[Vectors]:
    """The bottlenecks of each augmentation."""
    return [vectors(augmentation) for augmentation in reader.augmentations(cache.open(directory))]


def assert_same(made: list[Vectors], wanted: list[Vectors]) -> None:
    """The same augmentations to rounding: each of 48 products of numbers up to 2 is rounded by 2^-24 of it."""
    assert len(made) == len(wanted)
    for some, others in zip(made, wanted, strict=True):
        assert some.keys() == others.keys()
        for path, vector in some.items():
            np.testing.assert_allclose(vector, others[path], atol=48 * 2 * 2**-24, err_msg=path)


def assert_another(left: Vectors, right: Vectors) -> None:
    """No photo has the same bottleneck in both."""
    assert left.keys() == right.keys()
    for path, vector in left.items():
        assert abs(vector - right[path]).max() > 1e-3, path
