"""What is missing: today's images against what the cache already holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import columns, command, store
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
    an image in the cache, is read, by `threads` threads, and fingerprinted: moved, renamed, copied and touched files
    keep their bottleneck. `rejected` (by position in `images`) are left out. Raises CacheError where the index or a
    shard that it does not name is damaged: the next index would name it, and say that all is well.
    """
    names = store.shard_names(directory) if directory else []
    skipped = np.zeros(len(images), bool)
    skipped[list(rejected)] = True
    plan = Plan(names, np.full(len(images), MISSING, np.int32), np.zeros(len(images), np.int32), skipped)
    if directory and names:
        made_by = store.module_of(directory)
        _match_index(plan, images, directory)
        _match_shards(plan, images, directory, made_by)
        _match_content(plan, images, directory, made_by, threads)
    return plan


def rejected_before(images: Images, directory: Path | None) -> dict[int, store.Rejected]:
    """By position: what is no file, and what an earlier run listed in `directory` and has not changed since."""
    rejected = {}
    for position in np.flatnonzero(images.sizes == NOT_A_FILE).tolist():
        mtime = int(images.mtimes[position])
        rejected[position] = store.Rejected(images.paths[position], NOT_A_FILE, mtime, "not a file")
    before = store.read_rejected(directory) if directory else []
    found = _join(Strings.of(r.path for r in before), images.paths)
    for row, position in zip(before, found.tolist(), strict=True):
        if position != MISSING and (row.size, row.mtime) == (images.sizes[position], images.mtimes[position]):
            rejected[position] = row
    return rejected


def _match_index(plan: Plan, images: Images, directory: Path) -> None:
    if not (directory / store.INDEX).exists():
        return
    _, index, table = store.read_index_table(directory)
    columns.check_rows(directory / store.INDEX, table)
    store.check_index(directory, index)
    # Shards may have been deleted, or have come, since the index was written: its numbers for them are not ours.
    place = {name: i for i, name in enumerate(plan.shards)}
    renumber = np.array([place.get(name, MISSING) for name in index.shards] + [MISSING], np.int32)
    found = _join_unchanged(images, plan, index.paths, index.sizes, index.mtimes)
    rows = np.flatnonzero(found != MISSING)
    plan.shard_ids[rows] = renumber[index.shard_ids[found[rows]]]
    plan.shard_rows[rows] = index.shard_rows[found[rows]]


def _match_shards(plan: Plan, images: Images, directory: Path, made_by: store.Module) -> None:
    """What a killed run committed is in shards, but in no index."""
    for i, name in _unindexed(plan, directory):
        rows = store.open_shard(directory, name, made_by).rows
        if not len(plan.missing):
            continue
        found = _join_unchanged(images, plan, rows.paths, rows.sizes, rows.mtimes)
        _place(plan, found, i)


def _match_content(plan: Plan, images: Images, directory: Path, made_by: store.Module, threads: int) -> None:
    missing = plan.missing
    if not len(missing):
        return
    shards = [store.open_shard(directory, name, made_by) for name in plan.shards]
    sizes = np.concatenate([opened.rows.sizes for opened in shards])
    candidates = missing[np.isin(images.sizes[missing], sizes)]
    if not len(candidates):
        return
    command.import_tensorflow()  # seconds that only a run with such files pays
    from extract import decode

    readable, prints = decode.fingerprints(images.image_dir, images.paths.take(candidates), threads)
    candidates = candidates[readable]
    known = np.concatenate([opened.rows.fingerprints for opened in shards])
    order = np.argsort(known, kind="stable")
    at = order[np.minimum(np.searchsorted(known[order], prints), len(known) - 1)]
    same = (known[at] == prints) & (sizes[at] == images.sizes[candidates])
    starts = np.cumsum([0] + [len(opened) for opened in shards])
    shard_ids = np.searchsorted(starts, at[same], side="right") - 1
    plan.shard_ids[candidates[same]] = shard_ids
    plan.shard_rows[candidates[same]] = at[same] - starts[shard_ids]


def _unindexed(plan: Plan, directory: Path) -> list[tuple[int, str]]:
    indexed = set(store.read_index(directory)[1].shards) if (directory / store.INDEX).exists() else set()
    return [(i, name) for i, name in enumerate(plan.shards) if name not in indexed]


def _place(plan: Plan, found: np.ndarray, shard_id: int) -> None:
    rows = np.flatnonzero(found != MISSING)
    plan.shard_ids[rows] = shard_id
    plan.shard_rows[rows] = found[rows]


def _join_unchanged(images: Images, plan: Plan, paths: Strings, sizes: np.ndarray, mtimes: np.ndarray) -> np.ndarray:
    """int64 [N]: the row of (paths, sizes, mtimes) with the same file as each image still missing, or MISSING."""
    found = np.full(len(images), MISSING, np.int64)
    missing = plan.missing
    at = _join(images.paths if len(missing) == len(images) else images.paths.take(missing), paths)
    if not len(paths):
        return found
    same = (at != MISSING) & (sizes[at] == images.sizes[missing]) & (mtimes[at] == images.mtimes[missing])
    found[missing[same]] = at[same]
    return found


def _join(left: Strings, right: Strings) -> np.ndarray:
    """int64 [len(left)]: where each string of `left` stands in `right`, or MISSING."""
    if left.equals(right):
        return np.arange(len(left))
    return Lookup(right).find(left, MISSING)
