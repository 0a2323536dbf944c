"""From mapped shards to batches, in bounded memory: whatever the cache's size, only a few blocks are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import tensorflow as tf

from cache.reader import Cache

BLOCK_BYTES = 8 << 20  # of bottlenecks in one block: what a processor's cache holds, and enough to keep a device busy
RESIDENT_BYTES = 512 << 20  # up to this a training set stays on the device: 200,000 images at float16 and D = 1280

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """A set of a cache's images, such as those that train: `rows` int [n], rows of the index."""

    cache: Cache
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label_ids(self) -> np.ndarray:
        """int32 [n]"""
        return self.cache.label_ids[self.rows]

    @cached_property
    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows sorted by class [n], and for each class that has any: where it starts, and how many it has."""
        order = np.argsort(self.label_ids, kind="stable")
        _, starts, counts = np.unique(self.label_ids[order], return_index=True, return_counts=True)
        return self.rows[order], starts, counts


@dataclass(frozen=True)
class Block:
    """K batches in a row: the batch of step k is bottlenecks[places[k]], with label_ids[k]."""

    bottlenecks: tf.Tensor  # [m, D] in the cache's dtype
    places: np.ndarray  # int64 [K, B]
    label_ids: np.ndarray  # int32 [K, B]


def draw(images: Images, generator: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
    """Places in the rows of `images.by_class`, int64 of that shape: a class uniformly, then one of its images.

    So classes are balanced whatever their sizes, as in the tutorial. Classes without an image are not drawn.
    """
    _, starts, counts = images.by_class
    classes = generator.integers(len(starts), size=shape)
    return starts[classes] + generator.integers(counts[classes])


def draws(images: Images, generator: np.random.Generator, batch_size: int, lengths: Iterable[int]) -> Iterator[Block]:
    """For each K of `lengths` a block of K class-balanced batches.

    A set of up to RESIDENT_BYTES is copied to the device once, and its blocks share that copy. Of a larger
    set each block brings its own bottlenecks, gathered from the shards while the caller uses the last block.
    """
    cache, (rows, _, _) = images.cache, images.by_class
    resident = None
    if len(images) * row_bytes(cache) <= RESIDENT_BYTES:
        resident = tf.constant(cache.bottlenecks(rows))

    def block(length: int) -> Block:
        places = draw(images, generator, (length, batch_size))
        label_ids = cache.label_ids[rows[places]]
        if resident is not None:
            return Block(resident, places, label_ids)
        bottlenecks = tf.constant(cache.bottlenecks(rows[places.reshape(-1)]))
        return Block(bottlenecks, np.arange(places.size).reshape(places.shape), label_ids)

    return _ahead(map(block, lengths))


def sequential(images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All the images once, in order, BLOCK_BYTES at a time: bottlenecks [m, D] and label ids int32 [m]."""

    def block(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images.cache.bottlenecks(rows), images.cache.label_ids[rows]

    step = max(1, BLOCK_BYTES // row_bytes(images.cache))
    blocks = map(block, (images.rows[start : start + step] for start in range(0, len(images), step)))
    return _ahead(blocks) if len(images) > step else blocks  # a thread for one block would only cost


def row_bytes(cache: Cache) -> int:
    """The size of one bottleneck."""
    return cache.module.dimension * cache.dtype.itemsize


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; each is made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as worker:
        upcoming = worker.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = worker.submit(next, items, None)
            yield item
