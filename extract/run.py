"""The flow of an extraction: images -> plan -> decode -> forward -> write -> index."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache import store
from extract import network, target, versions, view
from extract.images import list_images
from extract.settings import Settings


@dataclass(frozen=True)
class Result:
    """What an extraction left behind."""

    directory: Path  # of this backbone, in the cache
    classes: int
    computed: int  # images that the network ran on
    reused: int
    rejected: int
    distorted: int = 0  # images that it ran on in distorted versions
    distorted_reused: int = 0
    thumbnails: int = 0  # made


def extract(settings: Settings) -> Result:
    """Brings the cache up to date with `image_dir`, running the network on what is missing only.

    Raises UserError for what a user can put right; whatever was committed before then stays.
    """
    images = list_images(settings.image_dir)
    load = functools.cache(partial(network.load, settings))  # seconds that a run with nothing to do does not pay
    directory = target.find(settings)
    rejected, work = view.find(images, directory, settings)
    computed = 0
    if directory is None or len(work.missing) or not target.is_complete(directory):
        loaded = load()
        if loaded.directory != directory:
            directory = loaded.directory
            rejected, work = view.find(images, directory, settings)
        store.sweep(directory)
        filled = loaded.fill(loaded.made_by, directory, images, work.missing, work.shards)
        computed = filled.computed
        rejected |= filled.rejected
    # From finding the shards to naming them in the index, none may be replaced.
    with store.locked(directory):
        work = view.complete(work, computed, images, directory, rejected, settings)
        view.write_rejected(directory, rejected)
        view.check_classes(images, rejected, directory)
        view.write_index(directory, images, work)
    distorted = versions.bring_up_to_date(settings, images, directory, rejected, load) if settings.augment else (0, 0)
    reused = len(images) - len(rejected) - computed
    shown = view.add_thumbnails(directory, settings.threads) if settings.thumbnails else 0
    return Result(directory, len(images.labels), computed, reused, len(rejected), *distorted, shown)
