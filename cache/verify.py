"""Compares every byte of a cache with its checksum."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from cache import files, layout, manifest, rejected, shard, thumbnails
from cache import index as indexes
from cache.bar import bar
from cache.errors import CacheError, UnreadableError, UserError, damage, first_line
from cache.index import Index, points_inside
from cache.layout import BACKBONE, INDEX, REJECTED, SHARDS, THUMBNAILS, BackboneInfo
from cache.reader import Cache, index_stamp
from cache.shard import Shard
from cache.strings import Strings
from cache.table import Table, check_rows
from cache.thumbnails import File
from cache.writer import COMMIT_BYTES

_NAMED = 3  # rows that a line names
_LONGEST_NAME = 100  # characters of a path in a line
_END_OF_FILE = slice(28, 36)  # bytes of HDF5's superblock, versions 2 and 3, that state the length of the file
_LARGEST = 8 * COMMIT_BYTES  # more than any shard has: a damaged length must not fill the disk

Opened = TypeVar("Opened", Shard, File)


@dataclass(frozen=True, eq=False)
class Damage:
    """What is wrong with one file of a cache."""

    path: Path
    reason: str
    rows: np.ndarray | None = None  # int64: the damaged ones; None: all, since the file cannot be read
    may_be_sound: bool = False  # something other than this file's content keeps it from being read

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def find(directory: Path) -> list[Damage]:
    """All that is wrong with one folder of bottlenecks, file by file; empty when everything agrees."""
    found: list[Damage] = []
    names = layout.shard_names(directory)
    lengths: dict[str, int] = {}
    made_by: dict[str, BackboneInfo] = {}
    for name in bar(names, desc="verify", unit=" shards", leave=False, delay=1):
        path = directory / SHARDS / name
        try:
            with salvaged(path, read_shard) as (opened, reason):
                # A compaction deletes shards that no index names any more. If an index does, `_of_index` says so.
                if opened is None and not os.path.lexists(path):
                    continue
                if opened is not None:
                    lengths[name], made_by[name] = len(opened), BackboneInfo.of(path, opened.attributes)
                found += _of_file(path, opened, reason)
        except UserError as error:
            found.append(Damage(path, str(error), may_be_sound=True))
    found += _of_index(directory, lengths, made_by)
    found += _of_thumbnails(directory)
    try:
        if (directory / BACKBONE).exists() and (differs := manifest.damage(directory / BACKBONE)):
            found.append(Damage(directory / BACKBONE, differs))
    except UnreadableError as error:
        found.append(Damage(directory / BACKBONE, str(error), may_be_sound=True))
    try:
        rejected.read(directory)
    except CacheError as error:
        found.append(Damage(directory / REJECTED, str(error), may_be_sound=isinstance(error, UnreadableError)))
    return found


def check(cache: Cache) -> None:
    """Raises CacheError unless every row that `cache` uses, and its backbone, agree with their checksums."""
    check_rows(cache.directory / INDEX, cache.table)
    shard_ids, shard_rows = cache.index.shard_ids, cache.index.shard_rows
    numbers = np.flatnonzero(np.bincount(shard_ids, minlength=len(cache.shards))).tolist()
    for number in bar(numbers, desc="check", unit=" shards", leave=False, delay=1):
        opened = cache.shards[number]
        bad = opened.table.damaged()
        if len(bad) and np.isin(shard_rows[shard_ids == number], bad).any():
            raise damage(opened.path, _described(bad, len(opened), opened.rows.paths))
    # An augmentation has no backbone of its own.
    if layout.augmentation_number(cache.directory) is None and (reason := manifest.damage(cache.backbone_dir)):
        raise damage(cache.backbone_dir, reason)


def _of_file(path: Path, opened: Shard | File | None, reason: str) -> Iterator[Damage]:
    if opened is None:
        yield Damage(path, reason)
        return
    bad = opened.table.damaged()
    strings = [column for column in opened.table.columns.values() if isinstance(column, Strings)]
    if len(bad):
        yield Damage(path, _described(bad, len(opened), opened.rows.paths), bad)
    elif not all(column.is_sound() for column in strings):
        yield Damage(path, "the offsets of its strings")
    elif reason:
        yield Damage(path, reason, bad)  # cut off behind the last row


def _of_thumbnails(directory: Path) -> Iterator[Damage]:
    names = thumbnails.names(directory)
    for name in bar(names, desc="verify", unit=" files of thumbnails", leave=False, delay=1):
        path = directory / THUMBNAILS / name
        try:
            with salvaged(path, thumbnails.read) as (opened, reason):
                if opened is not None or os.path.lexists(path):  # otherwise a compaction has replaced it
                    yield from _of_file(path, opened, reason)
        except UserError as error:
            yield Damage(path, str(error), may_be_sound=True)


def _of_index(directory: Path, lengths: Mapping[str, int], made_by: Mapping[str, BackboneInfo]) -> list[Damage]:
    """What is wrong with the index, and the shards that another backbone made than the index says.

    `lengths` and `made_by` say how many rows each readable shard has, and which backbone made it.
    """
    path = directory / INDEX
    while True:
        if not os.path.lexists(path):
            return _of_several_backbones(directory, made_by)
        before = index_stamp(directory)
        try:
            info, index, table = indexes.read_table(directory)
        except CacheError as error:
            return [Damage(path, str(error), may_be_sound=isinstance(error, UnreadableError))]
        lost = set(index.shards).difference(layout.shard_names(directory))
        # A compaction replaces the index before it deletes shards.
        if not lost or before == index_stamp(directory):
            break
    found = _of_rows(path, index, table, lengths, sorted(lost))
    foreign = {
        name: (of.fingerprint, of.dimension) != (info.fingerprint, info.dimension) for name, of in made_by.items()
    }
    if all(foreign.get(name, True) for name in index.shards) and any(foreign.values()):
        return [*found, Damage(path, "made by another backbone than its shards")]
    shards = directory / SHARDS
    return found + [Damage(shards / name, "made by another backbone") for name, is_so in foreign.items() if is_so]


def _of_several_backbones(directory: Path, made_by: Mapping[str, BackboneInfo]) -> list[Damage]:
    """If no index says whose folder this is, shards of several backbones may each be the right ones."""
    of_each = {of.fingerprint: name for name, of in made_by.items()}
    if len(of_each) < 2:
        return []
    names = " and ".join(sorted(of_each.values()))
    reason = f"{names} in {directory / SHARDS} are of different backbones; move those away that do not belong there"
    return [Damage(directory / SHARDS, reason, may_be_sound=True)]


def _of_rows(path: Path, index: Index, table: Table, lengths: Mapping[str, int], lost: Sequence[str]) -> list[Damage]:
    differ = np.zeros(len(index.paths), bool)
    differ[table.damaged()] = True
    label_ids = np.asarray(index.label_ids)
    differ |= (label_ids < 0) | (label_ids >= len(index.labels))
    # A missing shard is reported here, a damaged one in a line of its own.
    known = np.array([lengths.get(name, np.iinfo(np.int64).max) for name in index.shards], np.int64)
    nowhere = ~points_inside(index, known)
    if lost:
        nowhere |= np.isin(index.shard_ids, [index.shards.index(name) for name in lost])
    reasons = []
    if differ.any():
        reasons.append(_described(np.flatnonzero(differ), len(differ), index.paths))
    if (nowhere & ~differ).any():
        reasons.append(f"{np.count_nonzero(nowhere & ~differ)} of {len(differ)} photos point nowhere")
    if lost:
        reasons.append(f"{SHARDS}/{lost[0]} is missing" + (f", and {len(lost) - 1} more" if len(lost) > 1 else ""))
    if reasons:
        return [Damage(path, "; ".join(reasons), np.flatnonzero(differ | nowhere))]
    return [] if index.paths.is_sound() else [Damage(path, "the offsets of its paths")]


@contextlib.contextmanager
def salvaged(path: Path, read: Callable[[Path], Opened]) -> Iterator[tuple[Opened | None, str]]:
    """Opens a file with `read`, or as much of it as is left if it was cut off; and the reason why `read` failed, or "".

    Raises UserError where there is no room for a copy, and UnreadableError for a file that may be sound.
    """
    with contextlib.ExitStack() as stack:
        opened, reason = None, ""
        try:
            opened = read(path)
        except UnreadableError:
            raise
        except CacheError as error:
            reason = str(error)
            with contextlib.suppress(CacheError, ValueError, FileNotFoundError):
                opened = replace(read(stack.enter_context(_filled_up(path))), path=path)
        yield opened, reason


def read_shard(path: Path) -> Shard:
    opened = shard.read(path)
    BackboneInfo.of(path, opened.attributes)
    return opened


@contextlib.contextmanager
def _filled_up(path: Path) -> Iterator[Path]:
    """A copy of a file that was cut off, extended to the length that its header states.

    Raises ValueError for a file that was not cut off, FileNotFoundError for one that is gone, and UserError where it
    cannot be copied: its rows may be sound even if nobody can look at them now.
    """
    files.check_regular(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            length = int.from_bytes(file.read(_END_OF_FILE.stop)[_END_OF_FILE], "little")
            if not path.stat().st_size < length <= _LARGEST:
                raise ValueError("not cut off")
            file.seek(0)
            copy = stack.enter_context(tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=files.TEMPORARY))
            shutil.copyfileobj(file, copy)
            copy.truncate(length)
            copy.flush()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(
                f"{path} was cut off, and cannot be copied to see what is left of it: {first_line(error)}; "
                "free some space, or do it where the folder can be written"
            ) from None
        yield Path(copy.name)


def _described(bad: np.ndarray, count: int, paths: Strings) -> str:
    """Such as "2 of 50 rows differ from their checksums or are not finite: 3 (roses/a.jpg), 7 (roses/b.jpg)"."""
    named = ", ".join(f"{row} ({_name(paths, row)})" for row in bad[:_NAMED].tolist())
    more = ", ..." if len(bad) > _NAMED else ""
    return f"{len(bad)} of {count} rows differ from their checksums or are not finite: {named}{more}"


def _name(paths: Strings, row: int) -> str:
    # The name itself may be damaged.
    return ascii(paths[row])[1:-1][:_LONGEST_NAME]
