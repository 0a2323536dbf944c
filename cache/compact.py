"""Makes a cache smaller and faster to read: merges small files, drops rows that no photo uses any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache import exchange, files, reader, shard, thumbnails
from cache import index as indexes
from cache.bar import bar
from cache.index import Index
from cache.layout import INDEX, SHARDS, THUMBNAILS
from cache.photos import LISTED
from cache.reader import Cache
from cache.shard import Rows, Shard
from cache.store import sweepable
from cache.strings import ABSENT, Strings
from cache.table import check_rows
from cache.thumbnails import Thumbnails
from cache.writer import COMMIT_BYTES

_FULL = 0.5  # a shard of at least this share of COMMIT_BYTES, all of it used, stays as it is


@dataclass(frozen=True)
class Result:
    """What compacting one backbone's folder did."""

    shards_before: int
    shards_after: int
    rows_dropped: int
    thumbnail_files_before: int
    thumbnail_files_after: int
    thumbnails_dropped: int
    bytes_freed: int


def compact(directory: Path) -> Result:
    """Rewrites the shards that are small or hold unused rows; the rows of a new shard are in the index's order.

    Shards that no index names yet, such as those of a running extraction, stay. Readers may go on meanwhile: it writes
    new shards, then the index, and only then deletes the old shards. It does the same to thumbnails. It may be killed
    at any moment; run again, it does the rest. Raises CacheError for a damaged cache, UserError when it cannot be
    written.
    """
    with files.locked(directory, required=True):
        files.sweep(sweepable(directory))
        freed_of_killed = exchange.finish(directory)
        cache = reader.open(directory)
        shards_before, shards_after, rows_dropped, freed = _compact_shards(cache)
        files_before, files_after, thumbnails_dropped, freed_too = _compact_thumbnails(cache)
    return Result(
        shards_before,
        shards_after,
        rows_dropped,
        files_before,
        files_after,
        thumbnails_dropped,
        freed_of_killed + freed + freed_too,
    )


def _compact_shards(cache: Cache) -> tuple[int, int, int, int]:
    """Shards before and after, rows dropped, bytes freed."""
    directory = cache.directory
    old = _to_rewrite(cache)
    if not old:
        return len(cache.shards), len(cache.shards), 0, 0
    check_rows(directory / INDEX, cache.table)
    for number in old:
        check_rows(cache.shards[number].path, cache.shards[number].table)
    before = sum(opened.path.stat().st_size for opened in cache.shards)
    with exchange.exchanging(directory, [cache.shards[number].path for number in old]) as ending:
        rewritten, kept = _rewritten(cache, old, ending)
        indexes.write(directory, cache.backbone, rewritten)
    after = sum((directory / SHARDS / name).stat().st_size for name in rewritten.shards)
    dropped = sum(len(cache.shards[number]) for number in old) - kept
    return len(cache.shards), len(rewritten.shards), dropped, before - after


def _compact_thumbnails(cache: Cache) -> tuple[int, int, int, int]:
    """Files of thumbnails before and after, thumbnails dropped, bytes freed."""
    directory = cache.directory
    found = [(file, rows) for file, rows, _ in thumbnails.used(directory, cache.index)]
    old = [
        (file, rows)
        for file, rows in found
        if len(rows) < len(file) or file.rows.thumbnails.length() < _FULL * COMMIT_BYTES
    ]
    dropped = sum(len(file) - len(rows) for file, rows in old)
    if not dropped and len(old) < 2:
        return len(found), len(found), 0, 0
    for file, _ in old:
        check_rows(file.path, file.table)
    before = sum(file.path.stat().st_size for file, _ in old)
    with exchange.exchanging(directory, [file.path for file, _ in old]) as ending:
        used = _together(file.rows.take(rows) for file, rows in old if len(rows))
        new = [directory / THUMBNAILS / thumbnails.write(directory, parts, ending) for parts in used]
    freed = before - sum(path.stat().st_size for path in new)
    return len(found), len(found) - len(old) + len(new), dropped, freed


def _together(parts: Iterable[Thumbnails]) -> Iterator[list[Thumbnails]]:
    """The parts in lists that fill a file each."""
    some: list[Thumbnails] = []
    for part in parts:
        some.append(part)
        if sum(one.thumbnails.length() for one in some) >= COMMIT_BYTES:
            yield some
            some = []
    if some:
        yield some


def _to_rewrite(cache: Cache) -> list[int]:
    """The shards (places in cache.shards) that hold unused rows, and the small ones that can be merged."""
    used, chosen = cache.used_rows(), []
    groups: dict[tuple, list[int]] = defaultdict(list)
    for number, opened in enumerate(cache.shards):
        if used[number] < len(opened) or opened.rows.bottlenecks.nbytes < _FULL * COMMIT_BYTES:
            groups[_how_made(opened)].append(number)
    for numbers in groups.values():
        if len(numbers) > 1 or used[numbers[0]] < len(cache.shards[numbers[0]]):
            chosen += numbers
    return sorted(chosen)


def _how_made(opened: Shard) -> tuple:
    """What all rows of one shard have in common."""
    made = opened.attributes
    return made.get("precision"), made.get("engine"), opened.rows.bottlenecks.dtype.name


def _rewritten(cache: Cache, old: list[int], ending: str) -> tuple[Index, int]:
    """Writes the used rows of the `old` shards to new ones, whose names have the `ending`.

    Returns the index that names these, and the number of rows.
    """
    directory, old_index = cache.directory, cache.index
    groups: dict[tuple, list[int]] = defaultdict(list)
    for number in old:
        groups[_how_made(cache.shards[number])].append(number)
    names = list(old_index.shards)
    shard_ids, shard_rows = np.array(old_index.shard_ids), np.array(old_index.shard_rows)
    kept = 0
    for numbers in groups.values():
        listed = min(cache.shards[number].listed for number in numbers)
        attributes = {**cache.shards[numbers[0]].attributes, LISTED: listed}
        for users, rows in bar(_chunks(cache, numbers), desc="compact", unit=" shards", leave=False, delay=1):
            names.append(shard.write(directory / SHARDS, attributes, [rows], ending))
            shard_ids[users[0]], shard_rows[users[0]] = len(names) - 1, users[1]
            kept += len(rows)
    there = [number for number in range(len(names)) if number not in set(old)]
    renumbered = np.full(len(names), ABSENT, np.int32)
    renumbered[there] = np.arange(len(there))
    shards = [names[number] for number in there]
    return replace(old_index, shards=shards, shard_ids=renumbered[shard_ids], shard_rows=shard_rows), kept


def _chunks(cache: Cache, numbers: list[int]) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], Rows]]:
    """The used rows of the shards `numbers`, each once, at most COMMIT_BYTES at a time, in the index's order.

    With them come the photos (int64 [n]) that use them, and for each photo its row among them (int32 [n]).
    """
    photos = np.flatnonzero(np.isin(cache.index.shard_ids, numbers))
    ids, rows = cache.index.shard_ids[photos].astype(np.int64), cache.index.shard_rows[photos].astype(np.int64)
    # Copies of one photo share a row.
    _, first, which = np.unique(ids << 32 | rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    first, rank = first[order], np.argsort(order)[which]
    at_once = max(1, COMMIT_BYTES // (cache.backbone.dimension * cache.shards[numbers[0]].rows.bottlenecks.itemsize))
    for start in range(0, len(first), at_once):
        taken = first[start : start + at_once]
        inside = np.flatnonzero((rank >= start) & (rank < start + at_once))
        places = (rank[inside] - start).astype(np.int32)
        yield (photos[inside], places), _take(cache, ids[taken], rows[taken])


def _take(cache: Cache, ids: np.ndarray, rows: np.ndarray) -> Rows:
    """Row rows[i] of shard ids[i], for each i."""
    order = np.argsort(ids, kind="stable")
    parts = [
        cache.shards[number].rows.take(rows[order][ids[order] == number]) for number in np.unique(ids[order]).tolist()
    ]
    together = Rows(
        Strings.concatenate([part.paths for part in parts]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in shard.NUMBERS},
    )
    return together.take(np.argsort(order))
