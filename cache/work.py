"""The photos that are still to be computed, handed out piece by piece while other extractions may do the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache import shard
from cache.errors import CacheError
from cache.layout import SHARDS, shard_names
from cache.matching import Match, same_files
from cache.photos import Photos
from cache.rejected import RETRY, Rejected
from cache.shard import Rows
from cache.strings import Lookup

PIECE = 256  # photos handed out at a time


class Work:
    """The photos whose bottlenecks a folder lacks, less those that others commit meanwhile.

    Extractions do not wait for each other, and make no claims that a killed run would leave behind. Each learns from
    the shards that appear what others have done. So two of them do the same work twice only for what both have in hand
    at the same moment: a piece, the content of the pipeline, and what is not committed yet.
    """

    def __init__(self, directory: Path, photos: Photos, match: Match, rejected: dict[int, Rejected]):
        self.photos = photos
        self.rejected = rejected  # by position in photos: those that cannot be read
        self.match = match
        readable = np.ones(len(photos), bool)
        readable[list(rejected)] = False
        self.missing = np.flatnonzero(~match.has_one & readable)  # int64 [M], positions in photos
        self.left_out = 0  # photos that others had done when their turn came
        self._rejected_before = len(rejected)
        self._directory = directory
        self._seen = set(match.shards)
        self._folder_changed: int | None = None  # the folder of shards, nanoseconds
        self._lookup: Lookup | None = None  # of the missing paths; made when another extraction shows itself
        self._done = np.zeros(len(self.missing), bool)  # by others

    def __len__(self) -> int:
        """How many photos are to be computed, as far as others do not."""
        return len(self.missing) - self.left_out

    @property
    def newly_rejected(self) -> int:
        return len(self.rejected) - self._rejected_before

    @property
    def computed(self) -> int:
        """How many photos were computed, once all pieces are."""
        return len(self) - self.newly_rejected

    @property
    def reused(self) -> int:
        """How many photos had their bottleneck already, or got it from other extractions."""
        return len(self.photos) - len(self.rejected) - self.computed

    def pieces(self, ending: str) -> Iterator[np.ndarray]:
        """int64 [n], positions in photos: what is to be computed, each photo once. Our shards' names have `ending`.

        Pieces come in random order: in order, a second extraction would trail the first and keep recomputing its
        uncommitted batches.
        """
        starts = np.arange(0, len(self.missing), PIECE)
        for start in np.random.default_rng().permutation(starts).tolist():
            self._look_for_others(ending)
            piece = slice(start, start + PIECE)
            positions = self.missing[piece][~self._done[piece]]
            self.left_out += len(self.missing[piece]) - len(positions)
            if len(positions):
                yield positions

    def reject(self, position: int, reason: str, retry: bool) -> None:
        """Records that a photo cannot be read. With `retry`, the next run tries again even if the file is unchanged."""
        mtime = RETRY if retry else int(self.photos.mtimes[position])
        size = int(self.photos.sizes[position])
        self.rejected[position] = Rejected(self.photos.paths[position], size, mtime, reason)

    def _look_for_others(self, ending: str) -> None:
        try:
            changed = (self._directory / SHARDS).stat().st_mtime_ns
            names = shard_names(self._directory) if changed != self._folder_changed else []
        except OSError:  # if this lasts, the next commit says what is wrong
            return
        self._folder_changed = changed
        for name in names:
            if name not in self._seen and not name.endswith(ending):
                with contextlib.suppress(CacheError):  # gone again, or damaged: then its photos are computed here
                    self._leave_out(shard.check(shard.read(self._directory / SHARDS / name)).rows)
            self._seen.add(name)

    def _leave_out(self, rows: Rows) -> None:
        if self._lookup is None:
            self._lookup = Lookup(self.photos.paths.take(self.missing))
        places, _ = same_files(self.photos, self.missing, self._lookup, rows)
        self._done[places] = True
