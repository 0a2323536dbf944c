"""What is missing: today's images against what the cache already holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import columns, command, store
from cache.shard import Rows
from cache.strings import Lookup, Strings
from extract.images import NOT_A_FILE, Images

MISSING = -1


@dataclass(frozen=True)
class Plan:
    """Where each of N images has its bottleneck."""

    shards: list[str]  # file names
    shard_ids: np.ndarray  # int32 [N], into shards; MISSING where there is none yet
    shard_rows: np.ndarray  # int32 [N]
    skipped: np.ndarray  # bool [N]: no image, as an earlier look found

    @property
    def missing(self) -> np.ndarray:
        """int64 [M]: the images to run the network on."""
        return np.flatnonzero((self.shard_ids == MISSING) & ~self.skipped)


def make(images: Images, directory: Path | None, rejected: Mapping[int, store.Rejected], threads: int) -> Plan:
    """Finds the bottlenecks of `images` in the cache `directory` (None: there is none yet).

    A file with the same path, size and time of modification is the same image. One that is not, but has the size of
    one that is gone, is read, by `threads` threads, and fingerprinted: moved, renamed and touched files keep their
    bottleneck; a copy of one that is still there is another image. `rejected` (by position in `images`) are left out.
    Raises CacheError where the index or a shard that it does not name is damaged: the next index would name it, and say
    that all is well.
    """
    names = store.shard_names(directory) if directory else []
    skipped = np.zeros(len(images), bool)
    skipped[list(rejected)] = True
    plan = Plan(names, np.full(len(images), MISSING, np.int32), np.zeros(len(images), np.int32), skipped)
    if directory and names:
        made_by = store.module_of(directory)
        indexed = _match_index(plan, images, directory)
        _match_shards(plan, images, directory, made_by, indexed)
        _match_content(plan, images, directory, made_by, threads)
    return plan


def rejected_before(images: Images, directory: Path | None) -> dict[int, store.Rejected]:
    """By position: what is no file, and what an earlier run listed in `directory` and has not changed since."""
    rejected = {}
    for position in np.flatnonzero(images.sizes == NOT_A_FILE).tolist():
        mtime = int(images.mtimes[position])
        rejected[position] = store.Rejected(images.paths[position], NOT_A_FILE, mtime, "not a file")
    before = store.read_rejected(directory) if directory else []
    by_path = {row.path: row for row in before}
    # Only few images need their paths compared.
    same = np.isin(images.sizes, [row.size for row in before]) & np.isin(images.mtimes, [row.mtime for row in before])
    for position in np.flatnonzero(same).tolist():
        row = by_path.get(images.paths[position])
        if row and (row.size, row.mtime) == (images.sizes[position], images.mtimes[position]):
            rejected[position] = row
    return rejected


def unchanged(images: Images, wanted: np.ndarray, paths: Lookup, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Which of the images `wanted` (int64 [M]), whose paths `paths` finds, are still the files of which are `rows`.

    Returns (int64 [K], into `wanted`; int64 [K], into `rows`).
    """
    places = paths.find(rows.paths, MISSING)
    known = np.flatnonzero(places != MISSING)
    found = wanted[places[known]]
    same = (rows.sizes[known] == images.sizes[found]) & (rows.mtimes[known] == images.mtimes[found])
    return places[known[same]], known[same]


def _match_index(plan: Plan, images: Images, directory: Path) -> set[str]:
    """Returns the shards that the index names."""
    if not (directory / store.INDEX).exists():
        return set()
    _, index, table = store.read_index_table(directory)
    columns.check_rows(directory / store.INDEX, table)
    store.check_index(directory, index)
    if len(index.shard_ids) and not (index.shard_ids.min() >= 0 and index.shard_ids.max() < len(index.shards)):
        raise columns.damage(directory / store.INDEX, "shard_ids")
    # Shards may have been deleted, or have come, since the index was written: its numbers for them are not ours.
    place = {name: i for i, name in enumerate(plan.shards)}
    renumber = np.array([place.get(name, MISSING) for name in index.shards], np.int32)
    missing = plan.missing
    at = _join(images.paths if len(missing) == len(images) else images.paths.take(missing), index.paths)
    known = np.flatnonzero(at != MISSING)
    at, rows = at[known], missing[known]
    same = (index.sizes[at] == images.sizes[rows]) & (index.mtimes[at] == images.mtimes[rows])
    plan.shard_ids[rows[same]] = renumber[index.shard_ids[at[same]]]
    plan.shard_rows[rows[same]] = index.shard_rows[at[same]]
    return set(index.shards)


def _match_shards(plan: Plan, images: Images, directory: Path, made_by: store.Module, indexed: set[str]) -> None:
    """What a killed run committed is in shards, but in no index."""
    missing = plan.missing
    paths: Lookup | None = None
    for i, name in enumerate(plan.shards):
        if name in indexed:
            continue
        rows = store.open_shard(directory, name, made_by).rows
        # Hashed once, whatever the number of shards: a long run leaves thousands.
        paths = paths or Lookup(images.paths.take(missing))
        places, found = unchanged(images, missing, paths, rows)
        plan.shard_ids[missing[places]] = i
        plan.shard_rows[missing[places]] = found


def _match_content(plan: Plan, images: Images, directory: Path, made_by: store.Module, threads: int) -> None:
    missing = plan.missing
    if not len(missing):
        return
    shards = [store.open_shard(directory, name, made_by) for name in plan.shards]
    starts = np.cumsum([0] + [len(opened) for opened in shards])
    # Rows of no image of today's. Those of others tell nothing of files that moved, and after a run that was killed
    # nearly every missing file has the size of some image that is done: all would be read before the work goes on.
    gone = np.ones(starts[-1], bool)
    placed = np.flatnonzero(plan.shard_ids != MISSING)
    places = starts[plan.shard_ids[placed]] + plan.shard_rows[placed]
    if (plan.shard_rows[placed] < 0).any() or (places >= starts[plan.shard_ids[placed] + 1]).any():
        raise columns.damage(directory / store.INDEX, "it points outside its shards")
    gone[places] = False
    rows = np.flatnonzero(gone)
    sizes = np.concatenate([opened.rows.sizes for opened in shards])[rows]
    candidates = missing[np.isin(images.sizes[missing], sizes)]
    if not len(candidates):
        return
    command.import_tensorflow()  # seconds that only a run with such files pays
    from extract import decode

    readable, prints = decode.fingerprints(images.image_dir, images.paths.take(candidates), threads)
    candidates = candidates[readable]
    known = np.concatenate([opened.rows.fingerprints for opened in shards])[rows]
    order = np.argsort(known, kind="stable")
    at = order[np.minimum(np.searchsorted(known[order], prints), len(known) - 1)]
    same = (known[at] == prints) & (sizes[at] == images.sizes[candidates])
    found = rows[at[same]]
    shard_ids = np.searchsorted(starts, found, side="right") - 1
    plan.shard_ids[candidates[same]] = shard_ids
    plan.shard_rows[candidates[same]] = found - starts[shard_ids]


def _join(left: Strings, right: Strings) -> np.ndarray:
    """int64 [len(left)]: where each string of `left` stands in `right`, or MISSING."""
    if left.equals(right):
        return np.arange(len(left))
    return Lookup(right).find(left, MISSING)
