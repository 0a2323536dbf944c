"""The write side of a cache: one folder of bottlenecks, plain or of one augmentation, open for filling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import files, kinds, layout, rejected, shard, thumbnails
from cache import index as indexes
from cache.errors import UserError
from cache.index import Index
from cache.layout import INDEX, REJECTED, SHARDS, BackboneInfo
from cache.matching import Match, ReadFingerprints, match
from cache.photos import LISTED, LONG_AFTER, NOT_A_FILE, Photos
from cache.rejected import Rejected
from cache.strings import ABSENT, find
from cache.work import Work
from cache.writer import Writer


@dataclass(frozen=True)
class Store:
    """One folder of bottlenecks, which need not exist yet, and the backbone that makes them.

    Filling it takes three steps: `missing`, then a `writer`, then `publish`. A run that is killed in between loses what
    was not committed, and the next run goes on from there.
    """

    directory: Path
    backbone: BackboneInfo

    @property
    def is_augmentation(self) -> bool:
        return layout.augmentation_number(self.directory) is not None

    def augmentation(self, number: int, description: str) -> Store:
        """The store of augmentation `number`, from 1, of these plain bottlenecks, changed as `description` says."""
        info = self.backbone.augmented(description)
        return Store(layout.augmentation_dir(self.directory, number, info), info)

    def missing(
        self, photos: Photos, read_fingerprints: ReadFingerprints, unreadable: Mapping[int, Rejected] | None = None
    ) -> Work:
        """Compares `photos` with what the folder holds.

        Left out are photos that are listed as rejected and have not changed since, and those that are `unreadable`, by
        position. Raises CacheError for a damaged index, list or shard.
        """
        with files.locked(self.directory, shared=True):
            known = dict(unreadable) if unreadable is not None else self._rejected_before(photos)
            return Work(self.directory, photos, self._match(photos, known, read_fingerprints), known)

    def writer(self, photos: Photos, precision: str, engine: str) -> Writer:
        """Collects the bottlenecks of `photos` that `engine` computes in `precision` and commits them as shards.

        Raises UserError where the folder cannot be written.
        """
        files.make_writable(self.directory, "--cache_dir")
        files.sweep(sweepable(self.directory))
        made = {"precision": precision, "engine": engine, LISTED: photos.listed}
        return Writer(self.directory, {**self.backbone.attributes(), **made})

    def publish(self, work: Work, read_fingerprints: ReadFingerprints) -> None:
        """Makes the index name the bottleneck of each photo, and the list of rejected photos name the others.

        What says the same as before is not written again. Raises UserError where a bottleneck is missing, and for a
        class without any readable photo.
        """
        # From finding the shards to naming them in the index, nobody may replace one.
        with files.locked(self.directory):
            names = layout.shard_names(self.directory)
            if self.is_augmentation and not names:
                return
            found = work.match
            if work.computed or names != found.shards:
                found = self._match(work.photos, work.rejected, read_fingerprints)
                if lost := int((~found.has_one).sum()) - len(work.rejected):
                    raise UserError(f"{lost} bottlenecks are gone from {self.directory}; run the same command again")
            if not self.is_augmentation:
                self._publish_rejected(work)
                self._check_classes(work)
            self._publish_index(work.photos, found)

    def _index(self) -> Index | None:
        """The index as it is now, or None. Raises CacheError for a damaged one."""
        return indexes.read(self.directory)[1] if (self.directory / INDEX).exists() else None

    def drop(self) -> None:
        """Deletes the whole folder, for all readers at once."""
        files.delete(self.directory)

    def _match(self, photos: Photos, known: Mapping[int, Rejected], read_fingerprints: ReadFingerprints) -> Match:
        skipped = np.zeros(len(photos), bool)
        skipped[list(known)] = True
        return match(photos, self.directory, self.backbone, skipped, read_fingerprints)

    def _rejected_before(self, photos: Photos) -> dict[int, Rejected]:
        """By position: what cannot be a photo, and those that an earlier run listed and that have not changed since."""
        found = {}
        for position in np.flatnonzero((photos.sizes == NOT_A_FILE) | (photos.sizes > kinds.LARGEST)).tolist():
            size, mtime = int(photos.sizes[position]), int(photos.mtimes[position])
            reason = "not a file" if size == NOT_A_FILE else kinds.TOO_LARGE
            found[position] = Rejected(photos.paths[position], size, mtime, reason)
        before = rejected.read(self.directory)
        by_path = {row.path: row for row in before}
        # Only few photos need their paths compared.
        same = np.isin(photos.sizes, [row.size for row in before])
        same &= np.isin(photos.mtimes, [row.mtime for row in before])
        same &= photos.ctimes <= (old.listed if (old := self._index()) else LONG_AFTER)
        for position in np.flatnonzero(same).tolist():
            row = by_path.get(photos.paths[position])
            if row and (row.size, row.mtime) == (photos.sizes[position], photos.mtimes[position]):
                found[position] = row
        return found

    def _publish_rejected(self, work: Work) -> None:
        rows = [*(work.rejected[position] for position in sorted(work.rejected)), *work.photos.unlisted]
        if rows != rejected.read(self.directory):
            rejected.write(self.directory, rows)

    def _check_classes(self, work: Work) -> None:
        """Raises UserError for a class none of whose photos could be read."""
        photos = work.photos
        readable = np.ones(len(photos), bool)
        readable[list(work.rejected)] = False
        counts = np.bincount(photos.label_ids[readable], minlength=len(photos.labels))
        if len(empty := np.flatnonzero(counts == 0)):
            raise UserError(
                f"class folder {photos.image_dir / photos.folders[empty[0]]} has no readable photo; "
                f"{self.directory / REJECTED} says why: fix the photos or delete the folder"
            )

    def _publish_index(self, photos: Photos, found: Match) -> None:
        rows = np.flatnonzero(found.has_one)
        new = Index(
            image_dir=str(photos.image_dir.resolve()),
            labels=photos.labels,
            shards=found.shards,
            paths=photos.paths if len(rows) == len(photos) else photos.paths.take(rows),
            sizes=photos.sizes[rows],
            mtimes=photos.mtimes[rows],
            label_ids=photos.label_ids[rows],
            shard_ids=found.shard_ids[rows],
            shard_rows=found.shard_rows[rows],
            listed=photos.listed,
        )
        if old := self._index():
            # Of the rejected ones, too: as long as the index says less, they are tried again in each run.
            is_later = photos.ctimes > old.listed
            if old.same_view(new) and old.listed != LONG_AFTER and not is_later.any():
                return
            self._drop_thumbnails(old, new, np.flatnonzero(is_later[rows]))
        indexes.write(self.directory, self.backbone, new)

    def _drop_thumbnails(self, old: Index, new: Index, changed: np.ndarray) -> None:
        """Deletes the thumbnails of what another file has replaced with the same path, size and mtime.

        Of the `changed` photos, int64 [n], rows of `new`, these are the ones that have another bottleneck than before.
        """
        at = find(new.paths.take(changed), old.paths)
        known = np.flatnonzero(at != ABSENT)
        at, rows = at[known], changed[known]
        same = (old.sizes[at] == new.sizes[rows]) & (old.mtimes[at] == new.mtimes[rows])
        number = {name: i for i, name in enumerate(new.shards)}
        before = np.array([number.get(name, ABSENT) for name in old.shards], np.int32)[old.shard_ids[at]]
        same &= (before != new.shard_ids[rows]) | (old.shard_rows[at] != new.shard_rows[rows])
        thumbnails.drop(self.directory, new, rows[same])


def sweepable(directory: Path) -> list[Path]:
    """The folders of a folder of bottlenecks in which writers leave temporary files; links lead to others' folders."""
    inside = [directory / SHARDS, directory / layout.THUMBNAILS]
    return [directory, *(folder for folder in inside if not folder.is_symlink())]


def read_info(directory: Path) -> BackboneInfo:
    """What describes the backbone of the bottlenecks in `directory`, from its index or else its first shard.

    Raises CacheError where both are missing or damaged.
    """
    names = layout.shard_names(directory)
    if (directory / INDEX).exists() or not names:
        return indexes.read(directory)[0]
    first = directory / SHARDS / names[0]
    return BackboneInfo.of(first, shard.read(first).attributes)
