"""The flow of an extraction: images -> plan -> decode -> forward -> write -> index."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import command, store, thumbnails
from cache.errors import UserError
from extract import plan, target
from extract.images import Images, list_images
from extract.settings import Settings

if TYPE_CHECKING:
    from extract.fill import Filled


@dataclass(frozen=True)
class Result:
    """What an extraction left behind."""

    directory: Path  # of this backbone, in the cache
    classes: int
    computed: int  # images that the network ran on
    reused: int
    rejected: int
    distorted: int = 0  # images that it ran on in distorted versions
    thumbnails: int = 0  # made


@dataclass(frozen=True)
class _Network:
    """The backbone, loaded."""

    made_by: store.Module
    directory: Path  # its folder in the cache
    fill: Callable[..., Filled]  # (made_by, directory, images, missing, known, distortion)


def extract(settings: Settings) -> Result:
    """Brings the cache up to date with `image_dir`, running the network on what is missing only.

    Raises UserError for what a user can put right; whatever was committed before then stays.
    """
    images = list_images(settings.image_dir)
    load = functools.cache(partial(_load, settings))  # seconds that a run with nothing to do does not pay
    directory = target.find(settings)
    rejected, work = _plan(images, directory, settings)
    computed = 0
    if directory is None or len(work.missing) or not target.is_complete(directory):
        network = load()
        if network.directory != directory:
            directory = network.directory
            rejected, work = _plan(images, directory, settings)
        store.sweep(directory)
        filled = network.fill(network.made_by, directory, images, work.missing, work.shards)
        computed = filled.computed
        rejected |= filled.rejected
    # From finding the shards to naming them in the index, none may be replaced.
    with store.locked(directory):
        work = _completed(work, computed, images, directory, rejected, settings)
        _write_rejected(directory, rejected)
        _check_classes(images, rejected, directory)
        _write_index(directory, images, work)
    distorted = _distort(settings, images, directory, rejected, load) if settings.augment else 0
    reused = len(images) - len(rejected) - computed
    shown = _add_thumbnails(directory, settings.threads) if settings.thumbnails else 0
    return Result(directory, len(images.labels), computed, reused, len(rejected), distorted, shown)


def _distort(
    settings: Settings,
    images: Images,
    directory: Path,
    rejected: Mapping[int, store.Rejected],
    load: Callable[[], _Network],
) -> int:
    """Does the same for each distorted version; returns how many images the network ran on."""
    plain = store.module_of(directory)
    store.sweep(directory / store.DISTORTED)
    if dropped := target.drop_other_versions(directory, plain, settings):
        print(f"distorted versions that were made with other flags are replaced: {dropped}")
    total = 0
    for number in range(1, settings.augment + 1):
        distortion = settings.distortion(number)
        made_by, folder = target.version(directory, plain, distortion)
        unreadable, computed = dict(rejected), 0
        with store.locked(folder, shared=True):
            work = plan.make(images, folder, unreadable, settings.threads)
        if len(work.missing):
            network = load()
            if network.directory != directory:
                raise UserError(
                    f"{settings.module} is no more the network that made {directory}; give another --cache_dir"
                )
            command.check_writable(folder, "--cache_dir")
            store.sweep(folder)
            filled = network.fill(made_by, folder, images, work.missing, work.shards, distortion)
            computed = filled.computed
            unreadable |= filled.rejected
        if store.shard_names(folder):
            with store.locked(folder):
                work = _completed(work, computed, images, folder, unreadable, settings)
                _write_index(folder, images, work)
        total += computed
    return total


def _load(settings: Settings) -> _Network:
    """Loads the backbone and makes its folder in the cache ready."""
    command.import_tensorflow()
    from extract import backbone, devices, engines, fill

    names = devices.choose(settings.devices)
    engine_name = engines.choose(settings.engine, names)
    command.check_writable(Path(settings.cache_dir), "--cache_dir")
    network = backbone.load(settings.module, settings.image_size)
    made_by, directory = target.prepare(settings, network)
    # Compiled once for all versions.
    build = functools.cache(partial(engines.build, engine_name, network, names, batch_size=settings.batch_size))
    return _Network(made_by, directory, partial(fill.fill, settings, names, build))


def _plan(images: Images, directory: Path | None, settings: Settings) -> tuple[dict[int, store.Rejected], plan.Plan]:
    """What the cache says of `images`: which were rejected before, and where the others' bottlenecks are."""
    with store.locked(directory, shared=True) if directory else contextlib.nullcontext():
        rejected = plan.rejected_before(images, directory)
        return rejected, plan.make(images, directory, rejected, settings.threads)


def _completed(
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
