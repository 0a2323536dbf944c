"""Folders of bottlenecks in which each row has a number that can be read off its vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cache import index as indexes
from cache import layout, shard
from cache.reader import Cache
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer

DIMENSION = 4
BACKBONE = layout.BackboneInfo("tiny", "tiny at its own size", "0123456789abcdef", 16, 16, "none", DIMENSION)


def rows(numbers: Iterable[int], dtype: str = "float16") -> Rows:
    """A row for each number."""
    numbers = np.array([*numbers])
    vectors = (numbers[:, None] + np.arange(DIMENSION) / 16).astype(dtype)
    return Rows(Strings.of(f"c/{n}.jpg" for n in numbers), numbers + 1, numbers + 2, numbers.astype(np.uint64), vectors)


def commit(
    directory: Path,
    numbers: Iterable[int],
    dtype: str = "float16",
    precision: str = "float32",
    engine: str = "tensorflow",
) -> None:
    """Writes a shard of these numbers."""
    with Writer(directory, {**BACKBONE.attributes(), "precision": precision, "engine": engine}) as writer:
        writer.append(rows(numbers, dtype))


def write_index(directory: Path, numbers: Sequence[int]) -> None:
    """An index with a photo for each of `numbers`. Its bottleneck is that number's row in the first shard with one."""
    names = layout.shard_names(directory)
    places: dict[int, tuple[int, int]] = {}
    for shard_id, name in enumerate(names):
        for row, number in enumerate(shard.read(directory / layout.SHARDS / name).rows.fingerprints.tolist()):
            places.setdefault(number, (shard_id, row))
    shard_ids, shard_rows = np.array([places[number] for number in numbers], np.int32).T
    paths = Strings.of(f"c/{i}-{number}.jpg" for i, number in enumerate(numbers))
    column = np.array(numbers)
    index = indexes.Index("/photos", ["a", "b"], names, paths, column, column, column % 2, shard_ids, shard_rows)
    indexes.write(directory, BACKBONE, index)


def numbers_of(opened: Cache) -> list[int]:
    """The number of each photo of an opened cache."""
    return opened.bottlenecks(np.arange(len(opened)))[:, 0].astype(int).tolist()
