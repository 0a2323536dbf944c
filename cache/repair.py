"""Drops what is damaged in a cache, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache import exchange, files, shard, thumbnails
from cache import index as indexes
from cache.errors import UserError
from cache.layout import BACKBONE, INDEX, REJECTED, SHARDS, THUMBNAILS
from cache.store import sweepable
from cache.strings import ABSENT
from cache.verify import Damage, find, read_shard, salvaged


def repair(directory: Path) -> list[Damage]:
    """Drops exactly the damaged rows, so that the next extraction makes them again. Returns what `verify.find` found.

    The sound rows of a damaged shard move to a new one. It may be killed at any moment; run again, it does the rest.
    Raises UserError, and drops nothing, where a file may be sound but cannot be read, such as one of a newer format,
    and where the cache cannot be written.
    """
    with files.locked(directory, required=True):
        files.sweep(sweepable(directory))
        exchange.finish(directory)
        found = find(directory)
        for damage in found:
            if damage.may_be_sound:
                raise UserError(f"nothing was dropped: {damage.reason}")
        damaged = {damage.path: damage for damage in found}
        shards = [path for path in damaged if path.parent == directory / SHARDS]
        shown = [path for path in damaged if path.parent == directory / THUMBNAILS]
        with exchange.exchanging(directory, [*shards, *shown]) as ending:
            moved = {
                path.name: None if damaged[path].rows is None else _move_sound_rows(path, ending) for path in shards
            }
            for path in shown:
                _keep_sound_thumbnails(directory, path, ending)
            index_path = directory / INDEX
            if index_path in damaged and damaged[index_path].rows is None:
                files.delete(index_path)
            elif index_path.exists() and (moved or index_path in damaged):
                _drop_from_index(directory, damaged.get(index_path), moved)
        if directory / BACKBONE in damaged:
            files.delete(directory / BACKBONE)
        if directory / REJECTED in damaged:
            files.delete(directory / REJECTED)
    return found


def _move_sound_rows(path: Path, ending: str) -> tuple[str, np.ndarray] | None:
    """Writes the sound rows of a damaged shard to a new one, whose name has the `ending`.

    Returns the name and the new row of each old one, int32, or ABSENT; None if no row is left.
    """
    with salvaged(path, read_shard) as (opened, _):
        if opened is None:
            return None
        places = np.full(len(opened), ABSENT, np.int32)
        sound = np.setdiff1d(np.arange(len(opened)), opened.table.damaged())
        if not len(sound):
            return None
        name = shard.write(path.parent, opened.attributes, [opened.rows.take(sound)], ending)
        places[sound] = np.arange(len(sound))
    return name, places


def _keep_sound_thumbnails(directory: Path, path: Path, ending: str) -> None:
    """Writes the sound rows of a damaged file of thumbnails as a new one, whose name has the `ending`."""
    with salvaged(path, thumbnails.read) as (opened, _):
        if opened is not None:
            sound = np.setdiff1d(np.arange(len(opened)), opened.table.damaged())
            if len(sound):
                thumbnails.write(directory, [opened.rows.take(sound)], ending)


def _drop_from_index(
    directory: Path, damage: Damage | None, moved: Mapping[str, tuple[str, np.ndarray] | None]
) -> None:
    """Drops the photos that `damage` names and those whose bottleneck is lost; the others point to the new shards."""
    info, index, _ = indexes.read_table(directory)
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
        keep[of_this] &= shard_rows[of_this] != ABSENT
    rows = np.flatnonzero(keep)
    if not len(rows):
        (directory / INDEX).unlink()
        return
    # The new index does not name shards that are gone.
    there = [n for n, name in enumerate(shards) if name not in moved and (directory / SHARDS / name).exists()]
    renumbered = np.full(len(shards), ABSENT, np.int32)
    renumbered[there] = np.arange(len(there))
    indexes.write(
        directory,
        info,
        replace(
            index,
            shards=[shards[number] for number in there],
            paths=index.paths.take(rows),
            shard_ids=renumbered[index.shard_ids[rows]],
            shard_rows=shard_rows[rows],
            **{name: getattr(index, name)[rows] for name in ("sizes", "mtimes", "label_ids")},
        ),
    )
