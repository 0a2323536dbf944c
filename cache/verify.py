"""Compares every byte of a cache with its checksum, and drops what is damaged."""

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

from cache import columns, reader, shard, store, sums, thumbnails
from cache.bar import bar
from cache.columns import Table
from cache.errors import CacheError, UnreadableError, UserError
from cache.reader import Cache, points_inside
from cache.shard import Shard
from cache.store import BACKBONE, INDEX, REJECTED, SHARDS, THUMBNAILS, Index, Module
from cache.strings import Strings
from cache.thumbnails import File
from cache.writer import COMMIT_BYTES

_NAMED = 3  # rows that a line names
_LONGEST_NAME = 100  # characters of a path in a line
_END_OF_FILE = slice(28, 36)  # of HDF5's superblock, versions 2 and 3: how long the file is
_LARGEST = 8 * COMMIT_BYTES  # of a shard, many times more than any has: a damaged length must not fill the disk

Opened = TypeVar("Opened", Shard, File)


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file of a cache."""

    path: Path
    reason: str
    rows: np.ndarray | None = None  # int64: those that are damaged; None: all, for the file cannot be read
    may_be_sound: bool = False  # it is not this file that keeps it from being read

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def find(directory: Path) -> list[Damage]:
    """All that is wrong with one backbone's folder, told file by file; empty when everything agrees."""
    found: list[Damage] = []
    names = store.shard_names(directory)
    lengths: dict[str, int] = {}
    made_by: dict[str, Module] = {}
    for name in bar(names, desc="verify", unit=" shards", leave=False, delay=1):
        path = directory / SHARDS / name
        try:
            with _opened(path, _read_shard) as (opened, reason):
                # A compaction deletes shards that no index names any more. Where one does, it points nowhere.
                if opened is None and not os.path.lexists(path):
                    continue
                if opened is not None:
                    lengths[name], made_by[name] = len(opened), Module.of(path, opened.attributes)
                found += _of_file(path, opened, reason)
        except UserError as error:
            found.append(Damage(path, str(error), may_be_sound=True))
    found += _of_index(directory, lengths, made_by)
    found += _of_thumbnails(directory)
    try:
        if (directory / BACKBONE).exists() and (differs := sums.damage(directory / BACKBONE)):
            found.append(Damage(directory / BACKBONE, differs))
    except UnreadableError as error:
        found.append(Damage(directory / BACKBONE, str(error), may_be_sound=True))
    try:
        store.read_rejected(directory)
    except CacheError as error:
        found.append(Damage(directory / REJECTED, str(error), may_be_sound=isinstance(error, UnreadableError)))
    return found


def repair(directory: Path) -> list[Damage]:
    """Drops what `find` finds: exactly the damaged rows, so that the next extraction makes them again.

    Returns what was found. Sound rows of a damaged shard move to a new one. It may be killed at any moment: what it
    had not done then, it does when it is run again. Raises UserError, and drops nothing, where a file may be sound but
    cannot be read, such as one of a newer format; and when the cache cannot be written.
    """
    with store.locked(directory, required=True):
        found = find(directory)
        for damage in found:
            if damage.may_be_sound:
                raise UserError(f"nothing was dropped: {damage.reason}")
        damaged = {damage.path: damage for damage in found}
        with store.withdrawing(directory) as new:
            moved = {
                path.name: None if damage.rows is None else _move_sound_rows(path, new)
                for path, damage in damaged.items()
                if path.parent == directory / SHARDS
            }
            shown = [path for path in damaged if path.parent == directory / THUMBNAILS]
            for path in shown:
                _keep_sound_thumbnails(directory, path)
            index_path = directory / INDEX
            if index_path in damaged and damaged[index_path].rows is None:
                _delete(index_path)
            elif index_path.exists() and (moved or index_path in damaged):
                _drop_from_index(directory, damaged.get(index_path), moved)
        for path in [*(directory / SHARDS / name for name in moved), *shown]:
            _delete(path)
        if directory / BACKBONE in damaged:
            _delete(directory / BACKBONE)
        if directory / REJECTED in damaged:
            _delete(directory / REJECTED)
    return found


def check(cache: Cache) -> None:
    """Raises CacheError unless every row that `cache` uses, and its backbone, agree with their checksums."""
    columns.check_rows(cache.directory / INDEX, cache.table)
    shard_ids, shard_rows = cache.index.shard_ids, cache.index.shard_rows
    numbers = np.flatnonzero(np.bincount(shard_ids, minlength=len(cache.shards))).tolist()
    for number in bar(numbers, desc="check", unit=" shards", leave=False, delay=1):
        opened = cache.shards[number]
        bad = opened.table.damaged()
        if len(bad) and np.isin(shard_rows[shard_ids == number], bad).any():
            raise columns.damage(opened.path, _told(bad, len(opened), opened.rows.paths))
    # A distorted version has none of its own.
    if store.version_of(cache.directory) is None and (reason := sums.damage(cache.backbone_dir)):
        raise columns.damage(cache.backbone_dir, reason)


def _of_file(path: Path, opened: Shard | File | None, reason: str) -> Iterator[Damage]:
    if opened is None:
        yield Damage(path, reason)
        return
    bad = opened.table.damaged()
    strings = [column for column in opened.table.columns.values() if isinstance(column, Strings)]
    if len(bad):
        yield Damage(path, _told(bad, len(opened), opened.rows.paths), bad)
    elif not all(column.is_sound() for column in strings):
        yield Damage(path, "the offsets of its strings")
    elif reason:
        yield Damage(path, reason, bad)  # cut off where no row lies


def _of_thumbnails(directory: Path) -> Iterator[Damage]:
    names = thumbnails.names(directory)
    for name in bar(names, desc="verify", unit=" files of thumbnails", leave=False, delay=1):
        path = directory / THUMBNAILS / name
        try:
            with _opened(path, thumbnails.read) as (opened, reason):
                if opened is not None or os.path.lexists(path):  # or else a compaction has replaced it
                    yield from _of_file(path, opened, reason)
        except UserError as error:
            yield Damage(path, str(error), may_be_sound=True)


def _of_index(directory: Path, lengths: Mapping[str, int], made_by: Mapping[str, Module]) -> list[Damage]:
    """What is wrong with the index, and the shards that another backbone made than it says.

    `lengths` and `made_by` are those of the shards that could be read.
    """
    path = directory / INDEX
    while True:
        if not os.path.lexists(path):
            return _of_several_backbones(directory, made_by)
        before = reader.index_stamp(directory)
        try:
            module, index, table = store.read_index_table(directory)
        except CacheError as error:
            return [Damage(path, str(error), may_be_sound=isinstance(error, UnreadableError))]
        lost = set(index.shards).difference(store.shard_names(directory))
        # A compaction deletes shards when another index is there already.
        if not lost or before == reader.index_stamp(directory):
            break
    found = _of_rows(path, index, table, lengths, sorted(lost))
    foreign = {
        name: (of.fingerprint, of.dimension) != (module.fingerprint, module.dimension) for name, of in made_by.items()
    }
    if all(foreign.get(name, True) for name in index.shards) and any(foreign.values()):
        return [*found, Damage(path, "made by another backbone than its shards")]
    shards = directory / SHARDS
    return found + [Damage(shards / name, "made by another backbone") for name, is_so in foreign.items() if is_so]


def _of_several_backbones(directory: Path, made_by: Mapping[str, Module]) -> list[Damage]:
    """Where no index says whose folder this is, shards of several backbones may each be the right ones."""
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
    # A shard that is missing altogether has no line of its own, a damaged one has.
    known = np.array([lengths.get(name, np.iinfo(np.int64).max) for name in index.shards], np.int64)
    nowhere = ~points_inside(index, known)
    if lost:
        nowhere |= np.isin(index.shard_ids, [index.shards.index(name) for name in lost])
    reasons = []
    if differ.any():
        reasons.append(_told(np.flatnonzero(differ), len(differ), index.paths))
    if (nowhere & ~differ).any():
        reasons.append(f"{np.count_nonzero(nowhere & ~differ)} of {len(differ)} images point nowhere")
    if lost:
        reasons.append(f"{SHARDS}/{lost[0]} is missing" + (f", and {len(lost) - 1} more" if len(lost) > 1 else ""))
    if reasons:
        return [Damage(path, "; ".join(reasons), np.flatnonzero(differ | nowhere))]
    return [] if index.paths.is_sound() else [Damage(path, "the offsets of its paths")]


def _delete(path: Path) -> None:
    """Whatever it is; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path, read: Callable[[Path], Opened]) -> Iterator[tuple[Opened | None, str]]:
    """What `read` makes of it, and what keeps others from that. A file that was cut off is read as far as it goes.

    Raises UserError where there is no room for that, and UnreadableError for a file that may be sound.
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


def _read_shard(path: Path) -> Shard:
    opened = shard.read(path)
    Module.of(path, opened.attributes)
    return opened


@contextlib.contextmanager
def _filled_up(path: Path) -> Iterator[Path]:
    """A copy of a file that was cut off, as long as it says that it was. Raises ValueError for one that was not.

    Raises FileNotFoundError for one that is gone, and UserError where it cannot be copied: that nobody can look at its
    rows does not make them bad.
    """
    columns.check_regular(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            length = int.from_bytes(file.read(_END_OF_FILE.stop)[_END_OF_FILE], "little")
            if not path.stat().st_size < length <= _LARGEST:
                raise ValueError("not cut off")
            file.seek(0)
            copy = stack.enter_context(
                tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=columns.TEMPORARY)
            )
            shutil.copyfileobj(file, copy)
            copy.truncate(length)
            copy.flush()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(
                f"{path} was cut off, and cannot be copied to see what is left of it: {error.strerror or error}; "
                "free some space, or do it where the folder can be written"
            ) from None
        yield Path(copy.name)


def _move_sound_rows(path: Path, new: list[str]) -> tuple[str, np.ndarray] | None:
    """Writes the sound rows of a damaged shard as a `new` one: its name, and for each old row the new one or -1."""
    with _opened(path, _read_shard) as (opened, _):
        if opened is None:
            return None
        places = np.full(len(opened), -1, np.int32)
        sound = np.setdiff1d(np.arange(len(opened)), opened.table.damaged())
        if not len(sound):
            return None
        new.append(shard.write(path.parent, opened.attributes, [opened.rows.take(sound)]))
        places[sound] = np.arange(len(sound))
    return new[-1], places


def _keep_sound_thumbnails(directory: Path, path: Path) -> None:
    """Writes the sound rows of a damaged file of thumbnails as a new one."""
    with _opened(path, thumbnails.read) as (opened, _):
        if opened is not None:
            sound = np.setdiff1d(np.arange(len(opened)), opened.table.damaged())
            if len(sound):
                thumbnails.write(directory, [opened.rows.take(sound)])


def _drop_from_index(
    directory: Path, damage: Damage | None, moved: Mapping[str, tuple[str, np.ndarray] | None]
) -> None:
    """Leaves out the images that `damage` names and those whose bottleneck is lost; the others follow to new shards."""
    module, index, _ = store.read_index_table(directory)
    keep = np.ones(len(index.paths), bool)
    if damage is not None and damage.rows is not None:
        keep[damage.rows] = False
    shard_rows = np.array(index.shard_rows)
    shards = list(index.shards)
    for number, name in enumerate(index.shards):
        of_this = np.flatnonzero(keep & (index.shard_ids == number))
        if name not in moved:
            continue
        target = moved[name]
        if target is None:
            keep[of_this] = False
            continue
        shards[number], places = target
        shard_rows[of_this] = places[shard_rows[of_this]]
        keep[of_this] &= shard_rows[of_this] >= 0
    rows = np.flatnonzero(keep)
    if not len(rows):
        (directory / INDEX).unlink()
        return
    # Without the names of shards that are gone.
    there = [n for n, name in enumerate(shards) if name not in moved and (directory / SHARDS / name).exists()]
    renumbered = np.full(len(shards), -1, np.int32)
    renumbered[there] = np.arange(len(there))
    store.write_index(
        directory,
        module,
        replace(
            index,
            shards=[shards[number] for number in there],
            paths=index.paths.take(rows),
            shard_ids=renumbered[index.shard_ids[rows]],
            shard_rows=shard_rows[rows],
            **{name: getattr(index, name)[rows] for name in ("sizes", "mtimes", "label_ids")},
        ),
    )


def _told(bad: np.ndarray, count: int, paths: Strings) -> str:
    """Such as "2 of 50 rows differ from their checksums: 3 (roses/a.jpg), 7 (roses/b.jpg)"."""
    named = ", ".join(f"{row} ({_name(paths, row)})" for row in bad[:_NAMED].tolist())
    more = ", ..." if len(bad) > _NAMED else ""
    return f"{len(bad)} of {count} rows differ from their checksums: {named}{more}"


def _name(paths: Strings, row: int) -> str:
    # The name itself may be what is damaged.
    return ascii(paths[row])[1:-1][:_LONGEST_NAME]
