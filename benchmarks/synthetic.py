"""Caches made up for measuring, of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache import store
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer

DIMENSION = 1280  # EfficientNet-Lite0's
CLASSES = 5
AT_ONCE = 8192  # rows made at a time
MODULE = store.Module("synthetic", "synthetic", "0123456789abcdef", 224, 224, "none", DIMENSION)


def vectors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bottlenecks float16 [count, DIMENSION] and their classes int32 [count].

    Like a network's: not negative, mostly small, classes that overlap a little.
    """
    generator = np.random.default_rng(seed)
    means = np.random.default_rng(0).normal(0, 0.12, (CLASSES, DIMENSION)).astype(np.float32)
    label_ids = generator.integers(CLASSES, size=count, dtype=np.int32)
    values = generator.standard_normal((count, DIMENSION), np.float32)
    values += means[label_ids]
    return np.maximum(values, 0).astype(np.float16), label_ids


def write(directory: Path, count: int, made_by: store.Module = MODULE) -> Path:
    """A cache of `count` bottlenecks in `directory`, as an extraction leaves it but for the network."""
    label_ids = []
    with Writer(directory, made_by.attributes()) as writer:
        block, ids = vectors(min(count, AT_ONCE))
        for start in range(0, count, AT_ONCE):
            taken = min(AT_ONCE, count - start)
            label_ids.append(ids[:taken])
            writer.append(rows(block[:taken], start))
    write_index(directory, np.concatenate(label_ids), made_by)
    return directory


def rows(bottlenecks: np.ndarray, start: int = 0) -> Rows:
    """`bottlenecks` [n, D] of images numbered from `start`."""
    numbers = np.arange(start, start + len(bottlenecks))
    return Rows(paths(numbers), numbers, numbers, numbers.astype(np.uint64), bottlenecks)


def write_index(directory: Path, label_ids: np.ndarray, made_by: store.Module = MODULE) -> None:
    """An index of len(label_ids) images over the shards in `directory`, which serve again from the first if too few."""
    from cache import shard

    names = store.shard_names(directory)
    lengths = [len(shard.read(directory / store.SHARDS / name)) for name in names]
    count = len(label_ids)
    places = np.resize(np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]), count)
    shard_ids = np.resize(np.repeat(np.arange(len(names), dtype=np.int32), lengths), count)
    numbers = np.arange(count)
    labels = [f"class {number}" for number in range(CLASSES)]
    index = store.Index("photos", labels, names, paths(numbers), numbers, numbers, label_ids, shard_ids, places)
    store.write_index(directory, made_by, index)


def paths(numbers: np.ndarray) -> Strings:
    """A path for each number, all of one length, made without a Python string for each."""
    template = np.frombuffer(b"class/photo-000000000.jpg", np.uint8)
    data = np.tile(template, (len(numbers), 1))
    for digit in range(9):
        data[:, 20 - digit] = ord("0") + numbers // 10**digit % 10
    return Strings(data.reshape(-1), np.arange(len(numbers) + 1) * len(template))
