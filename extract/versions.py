"""Distorted versions of the images, each in a store of its own beside the plain one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cache import command, store
from cache.errors import UserError
from extract import plan, target, view
from extract.images import Images
from extract.network import Loaded
from extract.settings import Settings


def bring_up_to_date(
    settings: Settings,
    images: Images,
    directory: Path,
    rejected: Mapping[int, store.Rejected],
    load: Callable[[], Loaded],
) -> tuple[int, int]:
    """Does for each distorted version what `run.extract` does for the images as they are.

    Returns how many images the network ran on, and how many it did not need to. Raises UserError as that does.
    """
    plain = store.module_of(directory)
    store.sweep(directory / store.DISTORTED)
    if others := target.other_versions(directory, plain, settings):
        _the_same(load(), settings, directory)  # where nothing can be made, nothing is lost
        for folder in others:
            target.drop(folder)
        print(f"distorted versions that were made with other flags are replaced: {len(others)}")
    total, reused = 0, 0
    for number in range(1, settings.augment + 1):
        distortion = settings.distortion(number)
        made_by, folder = target.version(directory, plain, distortion)
        unreadable, computed = dict(rejected), 0
        with store.locked(folder, shared=True):
            work = plan.make(images, folder, unreadable, settings.threads)
        if len(work.missing):
            network = _the_same(load(), settings, directory)
            command.make_writable(folder, "--cache_dir")
            store.sweep(folder)
            filled = network.fill(made_by, folder, images, work.missing, work.shards, distortion)
            computed = filled.computed
            unreadable |= filled.rejected
            if filled.rejected:
                print(f"{len(filled.rejected)} images can no more be read, and have no version {number}")
        if store.shard_names(folder):
            with store.locked(folder):
                work = view.complete(work, computed, images, folder, unreadable, settings)
                view.write_index(folder, images, work)
        total += computed
        reused += len(images) - len(unreadable) - computed
    return total, reused


def _the_same(network: Loaded, settings: Settings, directory: Path) -> Loaded:
    """The network itself. Raises UserError for another than made the plain bottlenecks in `directory`."""
    if network.directory != directory:
        raise UserError(f"{settings.module} is no more the network that made {directory}; give another --cache_dir")
    return network
