"""What a run trains on: a cache whose photos are split into parts, and its augmentations."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cache import layout, reader, verify
from cache.console import print
from cache.errors import CacheError, UserError
from cache.reader import Cache
from train.data import split as splits
from train.data.parts import TEST, TRAIN, VALIDATION
from train.data.split import Split
from train.random_streams import RandomStream
from train.settings import TrainSettings

if TYPE_CHECKING:
    from train.data.batches import Images


@dataclass(frozen=True, eq=False)
class Dataset:
    """The N photos of a cache, each in its part."""

    cache: Cache  # with the classes to learn
    split: Split
    augmentations: Sequence[Cache]  # that train beside the plain photos
    refits: bool  # whether the validation photos train, too, in the last fit

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many photos train, validate and test."""
        return self.split.count(TRAIN), self.split.count(VALIDATION), self.split.count(TEST)

    def rows(self, *parts: int) -> np.ndarray:
        """int64 [n]: the photos in these parts, rows of the index."""
        return np.flatnonzero(np.isin(self.split.parts, parts))

    def images(self, *parts: int, augmented: bool = False) -> Images:
        """The photos in these parts as solvers stream them; with their augmentations if `augmented`."""
        from train.data.batches import Images  # TensorFlow, which takes seconds to import

        plain = Images(self.cache, self.rows(*parts))
        return plain.augmented(self.augmentations) if augmented else plain

    def test_images(self, count: int, seed: int) -> Images:
        """`count` of the test photos, chosen at random; all of them if they are no more, or for -1.

        No photo counts twice: the accuracy on these is the number that people quote.
        """
        images = self.images(TEST)
        if count == -1 or count >= len(images):
            return images
        generator = np.random.default_rng([seed, RandomStream.TEST_SAMPLE])
        return replace(images, rows=generator.choice(images.rows, count, replace=False))

    def digest(self) -> str:
        """A hash of all that makes a training set: the backbones, the photos, the part of each, which augmentations
        train, and whether validation photos do in the end."""
        index = self.cache.index
        arrays = [index.paths.data, index.paths.offsets, index.sizes, index.mtimes, index.label_ids, self.split.parts]
        arrays += [reader.places(augmentation, self.cache) for augmentation in self.augmentations]
        fingerprints = [cache.backbone.fingerprint for cache in (self.cache, *self.augmentations)]
        hashed = hashlib.sha256(" ".join(fingerprints).encode())
        hashed.update(bytes([self.refits]))
        for array in arrays:
            hashed.update(np.ascontiguousarray(array).data)
        return hashed.hexdigest()

    def check(self) -> None:
        """Raises CacheError for damage, which would make a worse classifier without anybody noticing."""
        for cache in (self.cache, *self.augmentations):
            verify.check(cache)


def open_split(settings: TrainSettings) -> Dataset:
    """Opens the cache and splits it; prints the parts, and warns on standard error if one is empty.

    Raises CacheError for a cache that is missing, damaged or lacks the backbone, and UserError if there is nothing to
    learn from.
    """
    splits.check_percentages(settings.testing_percentage, settings.validation_percentage)
    cache = reader.open(settings.cache_dir, settings.module)
    if not layout.has_backbone(cache.directory):
        raise CacheError(f"{cache.backbone_dir} holds no SavedModel; copy the whole cache, or run the extraction again")
    split = splits.split(
        settings.split,
        cache.paths,
        cache.labels,
        cache.label_ids,
        cache.fingerprints,
        testing_percentage=settings.testing_percentage,
        validation_percentage=settings.validation_percentage,
    )
    if not split.count(VALIDATION):
        if settings.solver == "sweep":
            raise UserError(
                "a sweep needs validation photos to choose by; raise --validation_percentage or use --solver lbfgs"
            )
        print("warning: no photo fell into the validation set; training goes on without", file=sys.stderr)
    print(split)
    return Dataset(
        cache=replace(cache, index=replace(cache.index, labels=split.labels, label_ids=split.label_ids)),
        split=split,
        augmentations=reader.augmentations(cache) if settings.use_augmentations else [],
        refits=settings.solver == "lbfgs" and not settings.no_refit and split.may_refit,
    )
