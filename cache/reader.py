"""A cache opened for reading: bottlenecks as maps of its shards, with today's labels and paths."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import columns
from cache.columns import Table
from cache.errors import CacheError
from cache.shard import Shard
from cache.store import (
    BACKBONE,
    INDEX,
    Index,
    Module,
    check_index,
    directories,
    distorted_module,
    module_of,
    open_shard,
    read_index_table,
    versions,
)
from cache.strings import Lookup, Strings

if TYPE_CHECKING:
    import pandas
    import tensorflow as tf

_FEW = 1024  # rows that are gathered one by one without a look at whether they lie in a row
_LONG = 8  # rows in a row, on average, from which copying them as one slice is faster
_NEAR_BYTES = 32 << 10  # between two rows of a shard: less than that is read along, as it takes no longer
_TRIES = 10  # to open a cache whose shards are replaced at the same time


@dataclass(frozen=True)
class Cache:
    """An opened cache of N images, as it was at that moment: a writer that changes it meanwhile is not seen."""

    directory: Path
    module: Module
    index: Index
    shards: Sequence[Shard]  # in the order of index.shards
    table: Table  # the index's images, with their checksums

    @property
    def labels(self) -> list[str]:
        """The C class names, in the order of a classifier's outputs."""
        return list(self.index.labels)

    @property
    def label_ids(self) -> np.ndarray:
        """int32 [N]: each image's class, a place in `labels`."""
        return self.index.label_ids

    @property
    def paths(self) -> Strings:
        """N paths below image_dir, a sequence of str."""
        return self.index.paths

    @property
    def backbone_dir(self) -> Path:
        """The SavedModel that made the bottlenecks."""
        return self.directory / BACKBONE

    @cached_property
    def dtype(self) -> np.dtype:
        """The widest type among the shards: float16 or float32."""
        return np.result_type(np.float16, *{s.rows.bottlenecks.dtype for s in self.shards})

    def __len__(self) -> int:
        return len(self.index.paths)

    def mapped(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All bottlenecks without copying any: read-only maps [n, D] of the files, float16 or float32.

        Each comes with the slice of the images (of `paths` and `label_ids`) whose bottlenecks it holds, in order.
        """
        shard_ids, rows = self.index.shard_ids, self.index.shard_rows
        for start, stop in itertools.pairwise([*_run_starts(shard_ids, rows).tolist(), len(self)]):
            row = int(rows[start])
            yield slice(start, stop), self.shards[shard_ids[start]].rows.bottlenecks[row : row + stop - start]

    def bottlenecks(self, images: np.ndarray) -> np.ndarray:
        """The bottlenecks of `images` (int [M], places in `paths`), in that order: a new array [M, D] of `dtype`.

        Raises IndexError for an image that is not there.
        """
        images = np.asarray(images)
        shard_ids, rows = self.index.shard_ids[images], self.index.shard_rows[images]
        if self._window is None:
            return self._from_each_shard(shard_ids, rows)
        starts = _run_starts(shard_ids, rows) if len(rows) > _FEW else None
        if starts is None or len(starts) * _LONG > len(rows):
            window, first, apart = self._window
            return window[first[shard_ids] + rows * apart]
        vectors = np.empty((len(rows), self.module.dimension), self.dtype)
        for start, stop in itertools.pairwise([*starts.tolist(), len(rows)]):
            row = int(rows[start])
            vectors[start:stop] = self.shards[shard_ids[start]].rows.bottlenecks[row : row + stop - start]
        return vectors

    def will_need(self, images: np.ndarray) -> None:
        """Has the system read the bottlenecks of `images` (int [M], places in `paths`) from disk, and does not wait.

        On a cache larger than memory, `bottlenecks` would otherwise wait for one page of a file after the other.
        """
        keys = np.unique(self.index.shard_ids[images].astype(np.int64) << 32 | self.index.shard_rows[images])
        shard_ids, rows = keys >> 32, keys & (1 << 32) - 1
        nearest = _NEAR_BYTES // (self.module.dimension * self.dtype.itemsize)
        for start, stop in itertools.pairwise([*_run_starts(shard_ids, rows, max(1, nearest)).tolist(), len(keys)]):
            mapped = self.shards[shard_ids[start]].rows.bottlenecks
            columns.will_need(mapped[rows[start] : rows[stop - 1] + 1])

    def used_rows(self) -> np.ndarray:
        """int64 [S]: how many rows of each shard are some image's bottleneck; copies of an image share one."""
        keys = np.unique(self.index.shard_ids.astype(np.int64) << 32 | self.index.shard_rows)
        return np.bincount(keys >> 32, minlength=len(self.shards))

    def to_tf_dataset(self, batch_size: int = 100, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """One pass over all images as a `tf.data.Dataset` of (bottlenecks [B, D] of `dtype`, label ids int32 [B]).

        In the order of `paths`, or in an order drawn from `shuffle_seed`, anew for each pass. The last batch may be
        smaller. Batches are copied out of the maps as they are needed.
        """
        import tensorflow as tf

        generator = np.random.default_rng(shuffle_seed)

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = np.arange(len(self)) if shuffle_seed is None else generator.permutation(len(self))
            for start in range(0, len(self), batch_size):
                images = order[start : start + batch_size]
                yield self.bottlenecks(images), self.label_ids[images]

        signature = (
            tf.TensorSpec([None, self.module.dimension], self.dtype),
            tf.TensorSpec([None], tf.int32),
        )
        return tf.data.Dataset.from_generator(batches, output_signature=signature)

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each image, in the order of `paths`: `path` (str), `label` (categorical), `size` (bytes),
        `mtime` (UTC), `shard` (categorical, a file name), `row` (in that shard).

        Raises ImportError where pandas is not installed.
        """
        import pandas

        index = self.index
        return pandas.DataFrame(
            {
                "path": list(index.paths),
                "label": pandas.Categorical.from_codes(index.label_ids, list(index.labels)),
                "size": np.asarray(index.sizes),
                "mtime": pandas.to_datetime(np.asarray(index.mtimes), utc=True),
                "shard": pandas.Categorical.from_codes(index.shard_ids, list(index.shards)),
                "row": np.asarray(index.shard_rows),
            }
        )

    def _from_each_shard(self, shard_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        vectors = np.empty((len(rows), self.module.dimension), self.dtype)
        for number in np.unique(shard_ids).tolist():
            places = np.flatnonzero(shard_ids == number)
            vectors[places] = self.shards[number].rows.bottlenecks[rows[places]]
        return vectors

    @cached_property
    def _window(self) -> tuple[np.ndarray, np.ndarray, np.int64] | None:
        """One array over the memory of all shards, so that one call gathers rows wherever they lie.

        Its rows [D] overlap: row `first[s] + r * apart` is row r of shard s. What lies between the shards is no
        memory of ours: only rows of shards may be touched, which `open` has made sure of. None for shards of
        different types. Grouping a batch's rows by shard and calling each would take twice as long.
        """
        arrays = {i: s.rows.bottlenecks for i, s in enumerate(self.shards) if len(s)}
        if not arrays or len({array.dtype for array in arrays.values()}) > 1:
            return None
        lowest = min(arrays.values(), key=lambda array: array.ctypes.data)
        width, step = self.module.dimension * lowest.itemsize, lowest.itemsize
        distances = {i: array.ctypes.data - lowest.ctypes.data for i, array in arrays.items()}
        unit = int(np.gcd.reduce([width, *distances.values()]))
        span = max(distance + (len(arrays[i]) - 1) * width for i, distance in distances.items())
        window = np.lib.stride_tricks.as_strided(
            lowest.reshape(-1), (span // unit + 1, self.module.dimension), (unit, step), writeable=False
        )
        first = np.array([distances.get(i, 0) // unit for i in range(len(self.shards))], np.int64)
        return window, first, np.int64(width // unit)


def open(path: str | os.PathLike, module: str | None = None) -> Cache:
    """Opens the cache at `path`: a cache_dir, or one backbone's folder in it.

    `module` chooses among several backbones. Checks what is cheap: that every file is there, whole and of one backbone,
    and that no image points outside them; `cache.verify` compares every byte. Raises CacheError where there is no
    cache, several to choose from, none of that module, or one that is damaged or newer than this version.
    """
    directory = _choose(Path(path), module)
    for _ in range(_TRIES):
        before = index_stamp(directory)
        try:
            return _open(directory)
        except CacheError:
            # Compacting replaces the index first and deletes old shards then: what was read may be the old index.
            if before == index_stamp(directory):
                raise
    return _open(directory)


def distorted(cache: Cache) -> list[Cache]:
    """The distorted versions of `cache`, in order of number, each opened and checked as `open` does.

    They are as they were at their last extraction: `places` says which of their rows belong to which image of `cache`.
    Raises CacheError for one that is damaged, not complete yet, or another backbone's.
    """
    found = []
    for directory in versions(cache.directory):
        if not (directory / INDEX).exists():
            raise CacheError(
                f"{directory} is not complete: its extraction has not ended; run it again with --augment "
                "and the same distortions, or delete that folder to do without this version"
            )
        version = open(directory)
        distortion = version.module.preprocessing.removeprefix(f"{cache.module.preprocessing}; ")
        if version.module.fingerprint != distorted_module(cache.module, distortion).fingerprint:
            raise columns.damage(directory / INDEX, "made by another backbone")
        found.append(version)
    return found


def places(version: Cache, cache: Cache) -> np.ndarray:
    """int64 [N]: where each of the N images of `cache` stands in `version`; -1: that knows no such file.

    A file with the same path, size and time of modification is the same.
    """
    there, here = version.index, cache.index
    at = np.arange(len(here.paths)) if there.paths.equals(here.paths) else Lookup(there.paths).find(here.paths, -1)
    found = np.flatnonzero(at != -1)
    same = (there.sizes[at[found]] == here.sizes[found]) & (there.mtimes[at[found]] == here.mtimes[found])
    at[found[~same]] = -1
    return at


def index_stamp(directory: Path) -> tuple[int, int] | None:
    """Tells one index from the next. A number alone would not: the file system gives a deleted file's to a new one."""
    try:
        status = os.stat(directory / INDEX)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _open(directory: Path) -> Cache:
    if not (directory / INDEX).exists():
        raise CacheError(f"{directory / INDEX} is not there yet: the extraction has not ended; run it again to go on")
    made_by, index, table = read_index_table(directory)
    check_index(directory, index)
    shards = [open_shard(directory, name, made_by) for name in index.shards]
    for opened in shards:
        if opened.rows.bottlenecks.shape[1] != made_by.dimension:
            raise columns.damage(directory / INDEX, f"its dimension is not that of {opened.path.name}")
    lengths = np.array([len(opened) for opened in shards], np.int64)
    if not points_inside(index, lengths).all():
        raise columns.damage(directory / INDEX, "it points outside its shards")
    return Cache(directory, made_by, index, shards, table)


def points_inside(index: Index, lengths: np.ndarray) -> np.ndarray:
    """bool [N]: whether each image's bottleneck lies inside its shard; `lengths` int64 [S], of the shards."""
    inside = (index.shard_ids >= 0) & (index.shard_ids < len(lengths)) & (index.shard_rows >= 0)
    if len(lengths):
        inside &= index.shard_rows < lengths[np.clip(index.shard_ids, 0, len(lengths) - 1)]
    return inside


def _run_starts(shard_ids: np.ndarray, rows: np.ndarray, nearest: int = 1) -> np.ndarray:
    """Where rows that lie one behind the other in one shard begin, or at most `nearest` rows further on, int64 [R]."""
    if not len(rows):
        return np.zeros(0, np.int64)
    gaps = rows[1:] - rows[:-1]
    breaks = (shard_ids[1:] != shard_ids[:-1]) | (gaps < 1) | (gaps > nearest)
    return np.concatenate([np.zeros(1, np.int64), 1 + np.flatnonzero(breaks)])


def _choose(path: Path, module: str | None) -> Path:
    if not path.exists():
        raise CacheError(f"no cache at {path}; run the extraction first, or give its --cache_dir")
    found = directories(path)
    if not found:
        raise CacheError(f"{path} holds no bottlenecks; run the extraction first, or give its --cache_dir")
    if module is not None:
        names = {directory: module_of(directory).module for directory in found}
        found = [d for d in found if module in (names[d], d.name)]
        if not found:
            raise CacheError(
                f"{path} holds no bottlenecks of {module}, only of {', '.join(sorted(set(names.values())))}; "
                "choose one of these with --module, or run the extraction with this one"
            )
    if len(found) > 1:
        raise CacheError(
            f"{path} holds the bottlenecks of several backbones; choose with --module: "
            + ", ".join(directory.name for directory in found)
        )
    return found[0]
