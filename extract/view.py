"""Today's view of a folder of images: what the cache has of them, and the index that says so."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cache import command, store, thumbnails
from cache.errors import UserError
from extract import plan
from extract.images import Images
from extract.settings import Settings


def find(images: Images, directory: Path | None, settings: Settings) -> tuple[dict[int, store.Rejected], plan.Plan]:
    """What the cache says of `images`: which were rejected before, and where the others' bottlenecks are."""
    with store.locked(directory, shared=True) if directory else contextlib.nullcontext():
        rejected = plan.rejected_before(images, directory)
        return rejected, plan.make(images, directory, rejected, settings.threads)


def complete(
    work: plan.Plan,
    computed: int,
    images: Images,
    directory: Path,
    rejected: Mapping[int, store.Rejected],
    settings: Settings,
) -> plan.Plan:
    """The plan with what came since it was made. Raises UserError where something is missing still."""
    if computed or store.shard_names(directory) != work.shards:
        work = plan.make(images, directory, rejected, settings.threads)
        if len(work.missing):
            raise UserError(f"{len(work.missing)} bottlenecks are gone from {directory}; run the same command again")
    return work


def write_rejected(directory: Path, rejected: Mapping[int, store.Rejected]) -> None:
    """Replaces the list of images that could not be read, where it is another one."""
    rows = [rejected[position] for position in sorted(rejected)]
    if rows != store.read_rejected(directory):
        store.write_rejected(directory, rows)


def check_classes(images: Images, rejected: Mapping[int, store.Rejected], directory: Path) -> None:
    """Raises UserError for a class none of whose images could be read."""
    readable = np.ones(len(images), bool)
    readable[list(rejected)] = False
    counts = np.bincount(images.label_ids[readable], minlength=len(images.labels))
    if len(empty := np.flatnonzero(counts == 0)):
        raise UserError(
            f"class folder {images.image_dir / images.folders[empty[0]]} has no readable image; "
            f"{directory / store.REJECTED} says why: mend the images or delete the folder"
        )


def write_index(directory: Path, images: Images, work: plan.Plan) -> None:
    """Replaces the index, where it says anything else."""
    rows = np.flatnonzero(work.shard_ids != plan.MISSING)
    index = store.Index(
        image_dir=str(images.image_dir.resolve()),
        labels=images.labels,
        shards=work.shards,
        paths=images.paths if len(rows) == len(images) else images.paths.take(rows),
        sizes=images.sizes[rows],
        mtimes=images.mtimes[rows],
        label_ids=images.label_ids[rows],
        shard_ids=work.shard_ids[rows],
        shard_rows=work.shard_rows[rows],
    )
    if (directory / store.INDEX).exists() and store.read_index(directory)[1].same_view(index):
        return
    store.write_index(directory, store.module_of(directory), index)


def add_thumbnails(directory: Path, threads: int) -> int:
    """Makes the thumbnails that the images of the index lack; returns how many."""
    with store.locked(directory, shared=True):
        _, index = store.read_index(directory)
        missing = thumbnails.missing(directory, index)
    if not len(missing):
        return 0
    command.import_tensorflow()
    from extract.thumbnails import make

    store.sweep(directory)
    return make(directory, index, missing, threads)
