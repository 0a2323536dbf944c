"""The flow of an extraction: images -> plan -> decode -> forward -> write -> index."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cache import command, store, thumbnails
from cache.errors import UserError
from extract import plan, target
from extract.images import Images, list_images
from extract.settings import Settings


@dataclass(frozen=True)
class Result:
    """What an extraction left behind."""

    directory: Path  # of this backbone, in the cache
    classes: int
    computed: int  # images that the network ran on
    reused: int
    rejected: int
    thumbnails: int = 0  # made


def extract(settings: Settings) -> Result:
    """Brings the cache up to date with `image_dir`, running the network on what is missing only.

    Raises UserError for what a user can put right; whatever was committed before then stays.
    """
    images = list_images(settings.image_dir)
    directory = target.find(settings)
    rejected, work = _plan(images, directory, settings)
    computed = 0
    if directory is None or len(work.missing) or not target.is_complete(directory):
        command.import_tensorflow()  # seconds that a run with nothing to do does not pay
        from extract import backbone, devices, engines, fill

        names = devices.choose(settings.devices)
        engine_name = engines.choose(settings.engine, names)
        command.check_writable(Path(settings.cache_dir), "--cache_dir")
        network = backbone.load(settings.module, settings.image_size)
        made_by, prepared = target.prepare(settings, network)
        if prepared != directory:
            directory = prepared
            rejected, work = _plan(images, directory, settings)
        store.sweep(directory)
        build_engine = partial(engines.build, engine_name, network, names, batch_size=settings.batch_size)
        filled = fill.fill(settings, names, build_engine, made_by, directory, images, work.missing)
        computed = filled.computed
        rejected |= filled.rejected
    # From finding the shards to naming them in the index, none may be replaced.
    with store.locked(directory):
        if computed or store.shard_names(directory) != work.shards:
            work = plan.make(images, directory, rejected, settings.threads)
            if len(work.missing):
                raise UserError(
                    f"{len(work.missing)} bottlenecks are gone from {directory}; run the same command again"
                )
        _write_rejected(directory, rejected)
        _check_classes(images, rejected, directory)
        _write_index(directory, images, work)
    reused = len(images) - len(rejected) - computed
    shown = _add_thumbnails(directory, settings.threads) if settings.thumbnails else 0
    return Result(directory, len(images.labels), computed, reused, len(rejected), shown)


def _plan(images: Images, directory: Path | None, settings: Settings) -> tuple[dict[int, store.Rejected], plan.Plan]:
    """What the cache says of `images`: which were rejected before, and where the others' bottlenecks are."""
    with store.locked(directory, shared=True) if directory else contextlib.nullcontext():
        rejected = plan.rejected_before(images, directory)
        return rejected, plan.make(images, directory, rejected, settings.threads)


def _add_thumbnails(directory: Path, threads: int) -> int:
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


def _write_rejected(directory: Path, rejected: Mapping[int, store.Rejected]) -> None:
    rows = [rejected[position] for position in sorted(rejected)]
    if rows != store.read_rejected(directory):
        store.write_rejected(directory, rows)


def _check_classes(images: Images, rejected: Mapping[int, store.Rejected], directory: Path) -> None:
    readable = np.ones(len(images), bool)
    readable[list(rejected)] = False
    counts = np.bincount(images.label_ids[readable], minlength=len(images.labels))
    if len(empty := np.flatnonzero(counts == 0)):
        raise UserError(
            f"class folder {images.image_dir / images.folders[empty[0]]} has no readable image; "
            f"{directory / store.REJECTED} says why: mend the images or delete the folder"
        )


def _write_index(directory: Path, images: Images, work: plan.Plan) -> None:
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
