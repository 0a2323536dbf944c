"""From mapped shards to batches, in bounded memory: whatever the cache's size, only a few blocks are in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np
import tensorflow as tf

from cache import reader
from cache.reader import Cache

BLOCK_BYTES = 8 << 20  # of bottlenecks in one block: what a processor's cache holds, and enough to keep a device busy
RESIDENT_BYTES = 256 << 20  # up to this a set stays on the device: 50,000 images at float32 and D = 1280
SHUFFLE_BYTES = 32 << 20  # of bottlenecks of a larger set, read in runs and mixed before they are batches
RUN_BYTES = 128 << 10  # of a run at most: as much as systems read ahead
RUNS_OF_CLASS = 8  # in a buffer, on average, so that a cache sorted by class still gives fair batches
_ABSENT = -1  # of `reader.places`

T = TypeVar("T")
# One pass over a set after the other, each in blocks of bottlenecks [m, D] and label ids int32 [m].
Passes: TypeAlias = Iterator[Iterator[tuple[tf.Tensor, tf.Tensor]]]


@dataclass(frozen=True)
class Images:
    """A set of a cache's images, such as those that train, with those of their distorted versions that are cached.

    `rows` int [n] name bottlenecks: row r of the index and version v of it, 0 the plain one, are r + v * len(cache).
    """

    cache: Cache
    rows: np.ndarray
    versions: Sequence[Cache] = ()  # version 1, 2, ...
    places: Sequence[np.ndarray] = ()  # for each, where the cache's images stand in its index, int64 [N]

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
        """A new array [M, D], float16 or float32, of `rows` (int [M])."""
        if not self.versions:
            return self.cache.bottlenecks(rows)
        vectors = np.empty((len(rows), self.cache.module.dimension), self.dtype)
        for cache, which, places in self._by_version(rows):
            vectors[which] = cache.bottlenecks(places)
        return vectors

    def will_need(self, rows: np.ndarray) -> None:
        """Has the system read the bottlenecks of `rows` (int [M]) from disk, and does not wait."""
        for cache, _, places in self._by_version(rows):
            cache.will_need(places)

    def _by_version(self, rows: np.ndarray) -> Iterator[tuple[Cache, np.ndarray, np.ndarray]]:
        """Each cache that has some of `rows`, which of them these are, and where it has them."""
        version, row = np.divmod(rows, len(self.cache))
        for number in np.unique(version).tolist():
            which = np.flatnonzero(version == number)
            if number:
                yield self.versions[number - 1], which, self.places[number - 1][row[which]]
            else:
                yield self.cache, which, row[which]

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*(cache.dtype for cache in (self.cache, *self.versions)))

    @property
    def row_bytes(self) -> int:
        """The size of one bottleneck."""
        return self.cache.module.dimension * self.dtype.itemsize

    def with_versions(self, versions: Sequence[Cache]) -> Images:
        """The same plain images and all distorted ones that `versions` have of them."""
        places = [reader.places(version, self.cache) for version in versions]
        rows = [self.rows]
        for number, there in enumerate(places, start=1):
            rows.append(self.rows[there[self.rows] != _ABSENT] + number * len(self.cache))
        return Images(self.cache, np.concatenate(rows), versions, places)

    @cached_property
    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows sorted by class [n], and for each class that has any: where it starts, and how many it has."""
        label_ids = self.label_ids
        order = np.argsort(label_ids, kind="stable")
        _, starts, counts = np.unique(label_ids[order], return_index=True, return_counts=True)
        return self.rows[order], starts, counts


@dataclass(frozen=True)
class Block:
    """K batches in a row: the batch of step k is bottlenecks[places[k]], with label_ids[k]."""

    bottlenecks: tf.Tensor  # [m, D], float16 or float32
    places: np.ndarray  # int64 [K, B]
    label_ids: np.ndarray  # int32 [K, B]


def draw(
    images: Images, generator: np.random.Generator, shape: tuple[int, ...], balanced: bool = True, run: int = 1
) -> np.ndarray:
    """Places in the rows of `images.by_class`, int64 of that shape: a class uniformly, then one of its images.

    So classes are balanced whatever their sizes, as in the tutorial. Classes without an image are not drawn. Where not
    `balanced`, every image is as likely as any other. With each image come those behind it, `run` in all, the first
    ones of the class behind the last; then all are mixed.
    """
    rows, starts, counts = images.by_class
    if not balanced:
        starts, counts = np.zeros(1, np.int64), np.array([len(rows)])
    size = math.prod(shape)
    classes = generator.integers(len(starts), size=-(-size // run))
    places = generator.integers(counts[classes])
    if run > 1:
        classes, places = np.repeat(classes, run), (places[:, np.newaxis] + np.arange(run)).reshape(-1)
        order = generator.permutation(len(places))[:size]
        classes, places = classes[order], places[order] % counts[classes[order]]
    return (starts[classes] + places).reshape(shape)


def run_of(images: Images, drawn: int) -> int:
    """How many images that lie one behind the other are drawn together, where `drawn` are drawn at once."""
    if is_resident(images):
        return 1
    _, starts, _ = images.by_class
    return max(1, min(RUN_BYTES // images.row_bytes, drawn // (RUNS_OF_CLASS * len(starts))))


def is_resident(images: Images) -> bool:
    """Whether all of a set stays on the device: as float32 it has RESIDENT_BYTES at most."""
    return len(images) * images.cache.module.dimension * 4 <= RESIDENT_BYTES


def blocks(images: Images, batches: Iterable[np.ndarray], device: str, run: int = 1) -> Iterator[Block]:
    """A block for each of `batches`, int64 [K, B], places in the rows of `images.by_class`, drawn in runs of `run`.

    A resident set is copied to the device once, and its blocks share that copy. Of a larger set each block brings its
    own bottlenecks, gathered from the shards while the caller uses the last block.
    """
    rows, _, _ = images.by_class
    resident = None
    if is_resident(images):
        resident = on(device, images.bottlenecks(rows))

    def block(places: np.ndarray) -> Block:
        drawn = rows[places]
        if resident is not None:
            return Block(resident, places, images.labels_of(drawn))
        if run > 1:  # of images one by one, asking takes longer than it saves
            images.will_need(drawn.reshape(-1))
        bottlenecks = on(device, images.bottlenecks(drawn.reshape(-1)))
        return Block(bottlenecks, np.arange(places.size).reshape(places.shape), images.labels_of(drawn))

    return _ahead(map(block, batches))


def sequential(images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All the images once, in order, BLOCK_BYTES at a time: bottlenecks [m, D] and label ids int32 [m]."""

    def block(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images.bottlenecks(rows), images.labels_of(rows)

    step = max(1, BLOCK_BYTES // images.row_bytes)
    blocks = map(block, (images.rows[start : start + step] for start in range(0, len(images), step)))
    return _ahead(blocks) if len(images) > step else blocks  # a thread for one block would only cost


def passes(images: Images, device: str) -> Passes:
    """For ever: one pass over all the images, as blocks on the device; a resident set is copied there once."""

    def one_pass(dtype: np.dtype) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        for bottlenecks, label_ids in sequential(images):
            yield on(device, bottlenecks.astype(dtype, copy=False)), on(device, label_ids)

    kept = list(one_pass(np.dtype(np.float32))) if is_resident(images) else None
    while True:
        yield iter(kept) if kept is not None else one_pass(images.dtype)


def on(device: str, array: np.ndarray) -> tf.Tensor:
    """A copy of the array on the device."""
    with tf.device(device):
        return tf.constant(array)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; each is made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as worker:
        upcoming = worker.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = worker.submit(next, items, None)
            yield item
