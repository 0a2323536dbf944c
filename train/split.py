"""Which images train, validate and test: a stable hash of the path decides, so an image keeps its place."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from cache.errors import UserError

TRAIN, VALIDATION, TEST = 0, 1, 2

FEW_IMAGES = 20  # below this a class is too small for the tutorial's percentages
_BUCKETS = 1 << 27  # the tutorial hashes a path to one of these


def assign(paths: Iterable[str | bytes], testing_percentage: float, validation_percentage: float) -> np.ndarray:
    """uint8 [N]: TRAIN, VALIDATION or TEST for each path below image_dir.

    The tutorial's rule: SHA-1 of the path with everything from `_nohash_` on cut off, modulo 2^27, as a
    percentage. Photos of one object, told apart after `_nohash_`, stay together; adding images moves none.
    """
    percentages = np.fromiter(map(_bucket, paths), np.uint32) * (100.0 / (_BUCKETS - 1))
    sets = np.full(len(percentages), TRAIN, np.uint8)
    sets[percentages < testing_percentage + validation_percentage] = TEST
    sets[percentages < validation_percentage] = VALIDATION
    return sets


def check_percentages(testing_percentage: float, validation_percentage: float) -> None:
    """Raises UserError when the two percentages leave nothing to train on."""
    if testing_percentage + validation_percentage >= 100:
        raise UserError(
            f"--testing_percentage {testing_percentage:g} and --validation_percentage {validation_percentage:g} "
            "leave no images for training; their sum must be below 100"
        )


def check_classes(labels: Sequence[str], label_ids: np.ndarray, sets: np.ndarray) -> None:
    """Warns on standard error of small classes.

    label_ids int [N], sets uint8 [N]. Raises UserError for fewer than two classes, and for a class that has no
    image to train on.
    """
    if len(labels) < 2:
        raise UserError(
            f"the cache holds {len(labels)} class{'es' * (len(labels) != 1)}, and a classifier needs two or more; "
            "add a folder of images for each class and run the extraction again"
        )
    images = np.bincount(label_ids, minlength=len(labels))
    training = np.bincount(label_ids[sets == TRAIN], minlength=len(labels))
    for label, count, left in zip(labels, images, training, strict=True):
        if count == 0:
            raise UserError(f"class {label!r} has no image in the cache; add images and run the extraction again")
        if left == 0:
            raise UserError(
                f"class {label!r} has no training image: its {count} went to validation and testing; add images, "
                "or lower --validation_percentage and --testing_percentage"
            )
    small = [f"{label!r} ({n})" for label, n in zip(labels, images, strict=True) if n < FEW_IMAGES]
    if small:
        shown = ", ".join(small[:10]) + (f" and {len(small) - 10} more" if len(small) > 10 else "")
        print(f"warning: fewer than {FEW_IMAGES} images, expect poor results: {shown}", file=sys.stderr)


def _bucket(path: str | bytes) -> int:
    stem = os.fsencode(path).partition(b"_nohash_")[0]
    # 2^27 divides 2^32: the digest's last four bytes hold all that its remainder depends on.
    return int.from_bytes(hashlib.sha1(stem).digest()[-4:], "big") % _BUCKETS
