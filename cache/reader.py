"""A cache opened for reading: its bottlenecks as maps of the shards, with today's labels and paths."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import hdf5, layout, shard
from cache import index as indexes
from cache.errors import CacheError, damage
from cache.index import Index, points_inside
from cache.layout import BACKBONE, INDEX, BackboneInfo
from cache.shard import Shard
from cache.store import read_info
from cache.strings import ABSENT, Strings, find
from cache.table import Table

if TYPE_CHECKING:
    import pandas
    import tensorflow as tf

_FEW = 1024  # up to so many rows are gathered one by one, without looking for runs of adjacent rows
_LONG = 8  # average length of a run of adjacent rows from which copying it as one slice is faster
_NEAR_BYTES = 32 << 10  # a gap between two rows that is smaller than this is read too, since that takes no longer
_TRIES = 10  # to open a cache whose shards are being replaced


@dataclass(frozen=True, eq=False)
class Cache:
    """An opened cache of N photos, as it was at that moment: later changes by a writer do not show."""

    directory: Path
    backbone: BackboneInfo
    index: Index
    shards: Sequence[Shard]  # in the order of index.shards
    table: Table  # the photos of the index, with their checksums

    @property
    def labels(self) -> list[str]:
        """The C class names, in the order of a classifier's outputs."""
        return list(self.index.labels)

    @property
    def label_ids(self) -> np.ndarray:
        """int32 [N]: the class of each photo, its place in `labels`."""
        return self.index.label_ids

    @property
    def paths(self) -> Strings:
        """N paths below image_dir, a sequence of str."""
        return self.index.paths

    @property
    def fingerprints(self) -> np.ndarray:
        """uint64 [N], a new array: FarmHash's Fingerprint64 of the bytes of each file; equal files have equal ones."""
        starts = np.cumsum([0, *map(len, self.shards)])
        columns = [np.zeros(0, np.uint64), *(opened.rows.fingerprints for opened in self.shards)]
        return np.concatenate(columns)[starts[self.index.shard_ids] + self.index.shard_rows]

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

    def __reduce__(self) -> tuple[Callable[[Path], Cache], tuple[Path]]:
        """A copy, also in another process, opens the cache anew: the maps of this one would not be there."""
        return open, (self.directory,)

    def mapped(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All bottlenecks without copying any: read-only maps [n, D] of the files, float16 or float32.

        Each comes with the slice of the photos (of `paths` and `label_ids`) whose bottlenecks it holds, in order.
        """
        shard_ids, shard_rows = self.index.shard_ids, self.index.shard_rows
        for start, stop in itertools.pairwise([*_run_starts(shard_ids, shard_rows).tolist(), len(self)]):
            row = int(shard_rows[start])
            yield slice(start, stop), self.shards[shard_ids[start]].rows.bottlenecks[row : row + stop - start]

    def bottlenecks(self, rows: np.ndarray) -> np.ndarray:
        """The bottlenecks of the photos at `rows` of the index (int [M]), in that order: a new array [M, D] of `dtype`.

        Raises IndexError for a row that is not there.
        """
        rows = np.asarray(rows)
        shard_ids, shard_rows = self.index.shard_ids[rows], self.index.shard_rows[rows]
        if self._window is None:
            return self._from_each_shard(shard_ids, shard_rows)
        starts = _run_starts(shard_ids, shard_rows) if len(rows) > _FEW else None
        if starts is None or len(starts) * _LONG > len(rows):
            window, first, apart = self._window
            return window[first[shard_ids] + shard_rows * apart]
        vectors = np.empty((len(rows), self.backbone.dimension), self.dtype)
        for start, stop in itertools.pairwise([*starts.tolist(), len(rows)]):
            row = int(shard_rows[start])
            vectors[start:stop] = self.shards[shard_ids[start]].rows.bottlenecks[row : row + stop - start]
        return vectors

    def will_need(self, rows: np.ndarray) -> None:
        """Asks the system to read the bottlenecks at `rows` of the index (int [M]) from disk, without waiting.

        On a cache larger than memory, `bottlenecks` would otherwise wait for one page of a file after the other.
        """
        keys = np.unique(self.index.shard_ids[rows].astype(np.int64) << 32 | self.index.shard_rows[rows])
        shard_ids, shard_rows = keys >> 32, keys & (1 << 32) - 1
        nearest = _NEAR_BYTES // (self.backbone.dimension * self.dtype.itemsize)
        for start, stop in itertools.pairwise(
            [*_run_starts(shard_ids, shard_rows, max(1, nearest)).tolist(), len(keys)]
        ):
            mapped = self.shards[shard_ids[start]].rows.bottlenecks
            hdf5.will_need(mapped[shard_rows[start] : shard_rows[stop - 1] + 1])

    def used_rows(self) -> np.ndarray:
        """int64 [S]: how many rows of each shard are the bottleneck of some photo. Copies of a photo share one."""
        keys = np.unique(self.index.shard_ids.astype(np.int64) << 32 | self.index.shard_rows)
        return np.bincount(keys >> 32, minlength=len(self.shards))

    def to_tf_dataset(self, batch_size: int = 100, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """One pass over all photos as a `tf.data.Dataset` of (bottlenecks [B, D] of `dtype`, label ids int32 [B]).

        In the order of `paths`, or in an order drawn from `shuffle_seed`, anew for each pass. The last batch may be
        smaller. Batches are copied out of the maps as they are needed.
        """
        import tensorflow as tf

        generator = np.random.default_rng(shuffle_seed)

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = np.arange(len(self)) if shuffle_seed is None else generator.permutation(len(self))
            for start in range(0, len(self), batch_size):
                rows = order[start : start + batch_size]
                yield self.bottlenecks(rows), self.label_ids[rows]

        signature = (
            tf.TensorSpec([None, self.backbone.dimension], self.dtype),
            tf.TensorSpec([None], tf.int32),
        )
        return tf.data.Dataset.from_generator(batches, output_signature=signature)

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each photo, in the order of `paths`: `path` (str), `label` (categorical), `size` (bytes),
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
        vectors = np.empty((len(rows), self.backbone.dimension), self.dtype)
        for number in np.unique(shard_ids).tolist():
            places = np.flatnonzero(shard_ids == number)
            vectors[places] = self.shards[number].rows.bottlenecks[rows[places]]
        return vectors

    @cached_property
    def _window(self) -> tuple[np.ndarray, np.ndarray, np.int64] | None:
        """One array over the memory of all shards, so that one call gathers rows from any of them.

        Its rows [D] overlap: row `first[s] + r * apart` is row r of shard s. The memory between the shards is not ours,
        so only rows of shards may be touched; `open` has checked that the index names no others. None if the shards
        have different dtypes. Grouping the rows of a batch by shard, with a call for each, would take twice as long.
        """
        arrays = {i: s.rows.bottlenecks for i, s in enumerate(self.shards) if len(s)}
        if not arrays or len({array.dtype for array in arrays.values()}) > 1:
            return None
        lowest = min(arrays.values(), key=lambda array: array.ctypes.data)
        width, step = self.backbone.dimension * lowest.itemsize, lowest.itemsize
        distances = {i: array.ctypes.data - lowest.ctypes.data for i, array in arrays.items()}
        unit = int(np.gcd.reduce([width, *distances.values()]))
        span = max(distance + (len(arrays[i]) - 1) * width for i, distance in distances.items())
        window = np.lib.stride_tricks.as_strided(
            lowest.reshape(-1), (span // unit + 1, self.backbone.dimension), (unit, step), writeable=False
        )
        first = np.array([distances.get(i, 0) // unit for i in range(len(self.shards))], np.int64)
        return window, first, np.int64(width // unit)


def open(path: str | os.PathLike, module: str | None = None) -> Cache:
    """Opens the cache at `path`: a cache_dir, or one backbone's folder in it.

    `module` chooses among several backbones. Opening checks what is cheap: that every file is there, whole and of one
    backbone, and that no photo points outside them. `cache.verify` compares every byte. Raises CacheError where there
    is no cache, several to choose from, none of that module, or one that is damaged or newer than this version.
    """
    directory = _choose(Path(path), module)
    for _ in range(_TRIES):
        before = index_stamp(directory)
        try:
            return _open(directory)
        except CacheError:
            # Compacting replaces the index and then deletes old shards: the index that was read may be the old one.
            if before == index_stamp(directory):
                raise
    return _open(directory)


def augmentations(cache: Cache) -> list[Cache]:
    """The augmentations of `cache`, in order of number, each opened and checked as `open` does.

    They are as they were at their last extraction: `places` says which of their rows belong to which photo of `cache`.
    Raises CacheError for one that is damaged, not complete yet, or another backbone's.
    """
    found = []
    for directory in layout.augmentations(cache.directory):
        if not (directory / INDEX).exists():
            raise CacheError(
                f"{directory} is not complete: its extraction has not ended; run it again with --augment "
                "and the same flags, or delete that folder to do without this augmentation"
            )
        augmentation = open(directory)
        description = augmentation.backbone.preprocessing.removeprefix(f"{cache.backbone.preprocessing}; ")
        if augmentation.backbone.fingerprint != cache.backbone.augmented(description).fingerprint:
            raise damage(directory / INDEX, "made by another backbone")
        found.append(augmentation)
    return found


def places(augmentation: Cache, cache: Cache) -> np.ndarray:
    """int64 [N]: the place in `augmentation` of each of the N photos of `cache`, or ABSENT.

    A file with the same path, size and mtime is the same photo.
    """
    there, here = augmentation.index, cache.index
    at = find(here.paths, there.paths)
    found = np.flatnonzero(at != ABSENT)
    same = (there.sizes[at[found]] == here.sizes[found]) & (there.mtimes[at[found]] == here.mtimes[found])
    at[found[~same]] = ABSENT
    return at


def index_stamp(directory: Path) -> tuple[int, int] | None:
    """Changes when the index is replaced. The inode alone may not: file systems reuse the inode of a deleted file."""
    try:
        status = os.stat(directory / INDEX)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _open(directory: Path) -> Cache:
    if not (directory / INDEX).exists():
        raise CacheError(f"{directory / INDEX} is not there yet: the extraction has not ended; run it again to go on")
    info, index, table = indexes.read_table(directory)
    indexes.check_labels(directory, index)
    hdf5.allow_files(len(index.shards))
    shards = [shard.open_in(directory, name, info) for name in index.shards]
    for opened in shards:
        if opened.rows.bottlenecks.shape[1] != info.dimension:
            raise damage(directory / INDEX, f"its dimension is not that of {opened.path.name}")
    lengths = np.array([len(opened) for opened in shards], np.int64)
    if not points_inside(index, lengths).all():
        raise damage(directory / INDEX, "it points outside its shards")
    return Cache(directory, info, index, shards, table)


def _run_starts(shard_ids: np.ndarray, rows: np.ndarray, nearest: int = 1) -> np.ndarray:
    """int64 [R]: the starts of runs: rows of one shard, each at most `nearest` rows behind the one before it."""
    if not len(rows):
        return np.zeros(0, np.int64)
    gaps = rows[1:] - rows[:-1]
    breaks = (shard_ids[1:] != shard_ids[:-1]) | (gaps < 1) | (gaps > nearest)
    return np.concatenate([np.zeros(1, np.int64), 1 + np.flatnonzero(breaks)])


def _modules(directories: Sequence[Path]) -> tuple[dict[Path, str], list[CacheError]]:
    """The module of each folder of bottlenecks, and the errors of those that are damaged: the others can be used."""
    names, damages = {}, []
    for directory in directories:
        try:
            names[directory] = read_info(directory).module
        except CacheError as error:
            damages.append(error)
    return names, damages


def _choose(path: Path, module: str | None) -> Path:
    if not path.exists():
        raise CacheError(f"no cache at {path}; run the extraction first, or give its --cache_dir")
    found = layout.directories(path)
    if not found:
        raise CacheError(f"{path} holds no bottlenecks; run the extraction first, or give its --cache_dir")
    if module is not None:
        names, damages = _modules(found)
        found = [d for d in found if module == d.name or module == names.get(d)]
        if not found and damages:
            raise damages[0]
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
