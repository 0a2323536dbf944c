"""Which photos already have a bottleneck in a folder: by path, size and mtime, or else by content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import hdf5, shard
from cache import index as indexes
from cache.errors import damage
from cache.layout import INDEX, BackboneInfo, shard_names
from cache.photos import Photos
from cache.shard import Rows
from cache.strings import ABSENT, Lookup, find
from cache.table import check_rows

# Reads the photos at `positions` (int64 [M]): the positions of the readable ones (int64 [K]), and the fingerprints of
# their bytes (uint64 [K]).
ReadFingerprints = Callable[[Photos, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Match:
    """Where each of N photos has its bottleneck."""

    shards: list[str]  # file names
    shard_ids: np.ndarray  # int32 [N], into shards; ABSENT where there is none
    shard_rows: np.ndarray  # int32 [N]

    @property
    def has_one(self) -> np.ndarray:
        """bool [N]: whether a photo has a bottleneck."""
        return self.shard_ids != ABSENT


def match(
    photos: Photos, directory: Path, info: BackboneInfo, skipped: np.ndarray, read_fingerprints: ReadFingerprints
) -> Match:
    """Finds the bottlenecks of `photos` among the shards of `directory`.

    A file with the same path, size and mtime is the same photo, unless its ctime is later than the last listing: two
    files may have been exchanged, or an mtime set back. Of the others, those that have the size of a photo that is gone
    are read and compared by content, except the ones that are `skipped` (bool [N]): so photos that were moved, renamed,
    touched or copied to another disk keep their bottleneck. A copy of a photo that is still there counts as another
    photo.

    Raises CacheError where the index, or a shard that it does not name, is damaged: the next index would name it.
    """
    names = shard_names(directory)
    found = Match(names, np.full(len(photos), ABSENT, np.int32), np.zeros(len(photos), np.int32))
    if names:
        hdf5.allow_files(len(names))
        search = _Search(photos, directory, info, skipped, found)
        indexed = search.in_index()
        search.in_shards(indexed)
        search.by_content(read_fingerprints)
    return found


def same_files(photos: Photos, positions: np.ndarray, paths: Lookup, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Matches `rows` to the photos at `positions` (int64 [M]) with the same path, size and mtime.

    `paths` looks up the paths of these photos. Returns the matches (int64 [K], into `positions`; int64 [K], into
    `rows`).
    """
    places = paths.find(rows.paths)
    known = np.flatnonzero(places != ABSENT)
    matched = positions[places[known]]
    same = (rows.sizes[known] == photos.sizes[matched]) & (rows.mtimes[known] == photos.mtimes[matched])
    return places[known[same]], known[same]


@dataclass(frozen=True, eq=False)
class _Search:
    """Writes what it finds into `found`."""

    photos: Photos
    directory: Path
    info: BackboneInfo
    skipped: np.ndarray  # bool [N]
    found: Match

    @property
    def missing(self) -> np.ndarray:
        """int64 [M]: the photos without a bottleneck so far."""
        return np.flatnonzero(~self.found.has_one & ~self.skipped)

    def in_index(self) -> set[str]:
        """Matches the rows of the index to the same photos. Returns the shards it names."""
        path = self.directory / INDEX
        if not path.exists():
            return set()
        _, old, table = indexes.read_table(self.directory)
        check_rows(path, table)
        indexes.check_labels(self.directory, old)
        if len(old.shard_ids) and not (old.shard_ids.min() >= 0 and old.shard_ids.max() < len(old.shards)):
            raise damage(path, "shard_ids")
        # Shards may have come or gone since the index was written, so its numbers for them are not ours.
        number = {name: i for i, name in enumerate(self.found.shards)}
        renumbered = np.array([number.get(name, ABSENT) for name in old.shards], np.int32)
        photos, missing = self.photos, self.missing
        at = find(photos.paths if len(missing) == len(photos) else photos.paths.take(missing), old.paths)
        known = np.flatnonzero(at != ABSENT)
        at, rows = at[known], missing[known]
        same = (old.sizes[at] == photos.sizes[rows]) & (old.mtimes[at] == photos.mtimes[rows])
        same &= photos.ctimes[rows] <= old.listed
        self.found.shard_ids[rows[same]] = renumbered[old.shard_ids[at[same]]]
        self.found.shard_rows[rows[same]] = old.shard_rows[at[same]]
        return set(old.shards)

    def in_shards(self, indexed: set[str]) -> None:
        """Does the same with the rows of shards that are not `indexed`: a run that was killed committed them."""
        missing = self.missing
        paths: Lookup | None = None
        for number, name in enumerate(self.found.shards):
            if name in indexed:
                continue
            opened = shard.open_in(self.directory, name, self.info)
            # Hashed once, whatever the number of shards: a long run leaves thousands.
            paths = paths or Lookup(self.photos.paths.take(missing))
            places, matched = same_files(self.photos, missing, paths, opened.rows)
            unchanged = self.photos.ctimes[missing[places]] <= opened.listed
            places, matched = places[unchanged], matched[unchanged]
            self.found.shard_ids[missing[places]] = number
            self.found.shard_rows[missing[places]] = matched

    def by_content(self, read_fingerprints: ReadFingerprints) -> None:
        """Matches photos to rows with the same size and fingerprint that belong to none of today's photos.

        Rows that do belong to one say nothing about files that moved. And after a kill nearly every missing file has
        the size of some photo that is done: all of them would be read before the work goes on.
        """
        missing, found = self.missing, self.found
        if not len(missing):
            return
        shards = [shard.open_in(self.directory, name, self.info) for name in found.shards]
        starts = np.cumsum([0] + [len(one) for one in shards])
        is_gone = np.ones(starts[-1], bool)
        placed = np.flatnonzero(found.has_one)
        places = starts[found.shard_ids[placed]] + found.shard_rows[placed]
        if (found.shard_rows[placed] < 0).any() or (places >= starts[found.shard_ids[placed] + 1]).any():
            raise damage(self.directory / INDEX, "it points outside its shards")
        is_gone[places] = False
        rows = np.flatnonzero(is_gone)
        sizes = np.concatenate([one.rows.sizes for one in shards])[rows]
        candidates = missing[np.isin(self.photos.sizes[missing], sizes)]
        if not len(candidates):
            return
        candidates, fingerprints = read_fingerprints(self.photos, candidates)
        known = np.concatenate([one.rows.fingerprints for one in shards])[rows]
        order = np.argsort(known, kind="stable")
        at = order[np.minimum(np.searchsorted(known[order], fingerprints), len(known) - 1)]
        same = (known[at] == fingerprints) & (sizes[at] == self.photos.sizes[candidates])
        matched = rows[at[same]]
        shard_ids = np.searchsorted(starts, matched, side="right") - 1
        found.shard_ids[candidates[same]] = shard_ids
        found.shard_rows[candidates[same]] = matched - starts[shard_ids]
