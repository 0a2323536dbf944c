"""From mapped shards to batches, in bounded memory: whatever the cache's size, only a few blocks are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import tensorflow as tf

from cache import reader
from cache.reader import Cache
from cache.strings import ABSENT

BLOCK_BYTES = 8 << 20  # of bottlenecks in one block: what a processor's cache holds, and enough to keep a device busy
RESIDENT_BYTES = 256 << 20  # up to this a set stays on the device: 50,000 images at float32 and D = 1280

T = TypeVar("T")
# One pass over a set after the other, each in blocks of bottlenecks [m, D] and label ids int32 [m].
Passes: TypeAlias = Iterator[Iterator[tuple[tf.Tensor, tf.Tensor]]]


@dataclass(frozen=True, eq=False)
class Images:
    """n images: photos of a cache, such as its training part, and augmentations of them that are cached.

    Each has a number in `rows` int [n]. For row r of the index it is r, and for augmentation a of that row, from 1, it
    is r + a * len(cache).
    """

    cache: Cache
    rows: np.ndarray
    augmentations: Sequence[Cache] = ()  # number 1, 2, ...
    places: Sequence[np.ndarray] = ()  # for each augmentation, the place of each of the cache's photos in it, int64 [N]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label_ids(self) -> np.ndarray:
        """int32 [n]"""
        return self.labels_of(self.rows)

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """The class of each of `rows` (int, any shape), int32 of that shape."""
        return self.cache.label_ids[rows % len(self.cache)]

    def bottlenecks(self, rows: np.ndarray) -> np.ndarray:
        """The bottlenecks of `rows` (int [M]), a new array [M, D] of float16 or float32."""
        if not self.augmentations:
            return self.cache.bottlenecks(rows)
        vectors = np.empty((len(rows), self.cache.backbone.dimension), self.dtype)
        for cache, which, places in self._by_cache(rows):
            vectors[which] = cache.bottlenecks(places)
        return vectors

    def will_need(self, rows: np.ndarray) -> None:
        """Asks the system to read the bottlenecks of `rows` (int [M]) from disk, without waiting."""
        for cache, _, places in self._by_cache(rows):
            cache.will_need(places)

    def _by_cache(self, rows: np.ndarray) -> Iterator[tuple[Cache, np.ndarray, np.ndarray]]:
        """Each cache that holds some of `rows`, which of `rows` these are, and their places in that cache."""
        number, row = np.divmod(rows, len(self.cache))
        for augmentation in np.unique(number).tolist():
            which = np.flatnonzero(number == augmentation)
            if augmentation:
                yield self.augmentations[augmentation - 1], which, self.places[augmentation - 1][row[which]]
            else:
                yield self.cache, which, row[which]

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*(cache.dtype for cache in (self.cache, *self.augmentations)))

    @property
    def row_bytes(self) -> int:
        """The size of one bottleneck."""
        return self.cache.backbone.dimension * self.dtype.itemsize

    def augmented(self, augmentations: Sequence[Cache]) -> Images:
        """The same plain photos, and the rows that `augmentations` hold of them."""
        places = [reader.places(augmentation, self.cache) for augmentation in augmentations]
        rows = [self.rows]
        for number, there in enumerate(places, start=1):
            rows.append(self.rows[there[self.rows] != ABSENT] + number * len(self.cache))
        return Images(self.cache, np.concatenate(rows), augmentations, places)

    @cached_property
    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows sorted by class [n], and for each class that has any: where it starts, and how many it has."""
        label_ids = self.label_ids
        order = np.argsort(label_ids, kind="stable")
        _, starts, counts = np.unique(label_ids[order], return_index=True, return_counts=True)
        return self.rows[order], starts, counts


class Block(NamedTuple):
    """K batches of B images in a row: the batch of step k is bottlenecks[places[k]], with label_ids[k]."""

    bottlenecks: tf.Tensor  # [m, D], float16 or float32
    places: np.ndarray  # int64 [K, B]
    label_ids: np.ndarray  # int32 [K, B]


def is_resident(images: Images) -> bool:
    """Whether all of a set stays on the device: as float32 it has RESIDENT_BYTES at most."""
    return len(images) * images.cache.backbone.dimension * 4 <= RESIDENT_BYTES


def blocks(images: Images, batches: Iterable[np.ndarray], device: str, run: int = 1) -> Iterator[Block]:
    """A block for each of `batches`, int64 [K, B], places in the rows of `images.by_class`, drawn in runs of `run`.

    A resident set is copied to the device once, and its blocks share that copy. Of a larger set each block brings its
    own bottlenecks, gathered from the shards while the caller uses the last block.
    """
    rows, _, _ = images.by_class
    resident = None
    if is_resident(images):
        resident = to_device(images.bottlenecks(rows), device)

    def block(places: np.ndarray) -> Block:
        drawn = rows[places]
        if resident is not None:
            return Block(resident, places, images.labels_of(drawn))
        if run > 1:  # for images one by one, asking the system takes longer than it saves
            images.will_need(drawn.reshape(-1))
        bottlenecks = to_device(images.bottlenecks(drawn.reshape(-1)), device)
        return Block(bottlenecks, np.arange(places.size).reshape(places.shape), images.labels_of(drawn))

    return _prefetched(map(block, batches))


def sequential(images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All the images once, in order, BLOCK_BYTES at a time: bottlenecks [m, D] and label ids int32 [m]."""

    def block(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images.bottlenecks(rows), images.labels_of(rows)

    step = max(1, BLOCK_BYTES // images.row_bytes)
    blocks = map(block, (images.rows[start : start + step] for start in range(0, len(images), step)))
    return _prefetched(blocks) if len(images) > step else blocks  # for a single block, a thread would only cost time


def passes(images: Images, device: str) -> Passes:
    """Endless passes over all the images, as blocks on the device; a resident set is copied there once."""

    def one_pass(dtype: np.dtype) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        for bottlenecks, label_ids in sequential(images):
            yield to_device(bottlenecks.astype(dtype, copy=False), device), to_device(label_ids, device)

    kept = list(one_pass(np.dtype(np.float32))) if is_resident(images) else None
    while True:
        yield iter(kept) if kept is not None else one_pass(images.dtype)


def to_device(array: np.ndarray, device: str) -> tf.Tensor:
    """A copy of the array on the device."""
    with tf.device(device):
        return tf.constant(array)


def _prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the caller uses the one before it."""
    with ThreadPoolExecutor(1) as worker:
        upcoming = worker.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = worker.submit(next, items, None)
            yield item
