"""Synthetic caches of any size, for measuring."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache import index as indexes
from cache import layout, shard
from cache.layout import BackboneInfo
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer

DIMENSION = 1280  # D of EfficientNet-Lite0
CLASSES = 5
BLOCK_ROWS = 8192  # rows written at a time
BACKBONE = BackboneInfo("synthetic", "synthetic", "0123456789abcdef", 224, 224, "none", DIMENSION)


def vectors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bottlenecks float16 [count, DIMENSION] and their classes int32 [count].

    Like those of a real backbone, they are not negative, mostly small, and their classes overlap a little.
    """
    generator = np.random.default_rng(seed)
    means = np.random.default_rng(0).normal(0, 0.12, (CLASSES, DIMENSION)).astype(np.float32)
    label_ids = generator.integers(CLASSES, size=count, dtype=np.int32)
    values = generator.standard_normal((count, DIMENSION), np.float32)
    values += means[label_ids]
    return np.maximum(values, 0).astype(np.float16), label_ids


def write(directory: Path, count: int, backbone: BackboneInfo = BACKBONE) -> Path:
    """Writes the shards and the index of `count` bottlenecks into `directory`, and returns it.

    The same BLOCK_ROWS bottlenecks serve again and again. The backbone itself is not saved.
    """
    label_ids = []
    with Writer(directory, backbone.attributes()) as writer:
        block, block_label_ids = vectors(min(count, BLOCK_ROWS))
        for start in range(0, count, BLOCK_ROWS):
            length = min(BLOCK_ROWS, count - start)
            label_ids.append(block_label_ids[:length])
            writer.append(rows(block[:length], start))
    write_index(directory, np.concatenate(label_ids), backbone)
    return directory


def rows(bottlenecks: np.ndarray, start: int = 0) -> Rows:
    """The rows of a shard for `bottlenecks` [n, D], whose photos are numbered from `start`."""
    numbers = np.arange(start, start + len(bottlenecks))
    return Rows(paths(numbers), numbers, numbers, numbers.astype(np.uint64), bottlenecks)


def write_index(directory: Path, label_ids: np.ndarray, backbone: BackboneInfo = BACKBONE) -> None:
    """Writes an index of N photos of the classes `label_ids` (int32 [N]) over the shards in `directory`.

    If the shards have fewer than N rows, several photos share a row.
    """
    names = layout.shard_names(directory)
    lengths = [len(shard.read(directory / layout.SHARDS / name)) for name in names]
    count = len(label_ids)
    shard_rows = np.resize(np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]), count)
    shard_ids = np.resize(np.repeat(np.arange(len(names), dtype=np.int32), lengths), count)
    numbers = np.arange(count)
    index = indexes.Index(
        image_dir="photos",
        labels=[f"class {number}" for number in range(CLASSES)],
        shards=names,
        paths=paths(numbers),
        sizes=numbers,
        mtimes=numbers,
        label_ids=label_ids,
        shard_ids=shard_ids,
        shard_rows=shard_rows,
    )
    indexes.write(directory, backbone, index)


def paths(numbers: np.ndarray) -> Strings:
    """A path for each of `numbers` (int64 [N], below 10^9), made without a Python string for each."""
    template = np.frombuffer(b"class/photo-000000000.jpg", np.uint8)
    last_digit = 20  # its place in the template
    data = np.tile(template, (len(numbers), 1))
    for power in range(9):
        data[:, last_digit - power] = ord("0") + numbers // 10**power % 10
    return Strings(data.reshape(-1), np.arange(len(numbers) + 1) * len(template))
