"""The flow of an extraction: list, missing, compute, publish; for the plain bottlenecks, then each augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cache import files, layout, process, thumbnails
from cache import index as indexes
from cache.console import print
from cache.store import Store, sweepable
from cache.work import Work
from extract.runner import Runner
from extract.settings import Settings
from extract.sources.folder import list_photos


@dataclass(frozen=True)
class Result:
    """What an extraction left behind."""

    directory: Path  # of this backbone, in the cache
    classes: int
    computed: int  # photos that the backbone ran on
    reused: int
    rejected: int
    augmented: int  # runs of the backbone on augmentations of photos
    augmented_reused: int
    thumbnails: int  # made


def extract(settings: Settings) -> Result:
    """Brings the cache up to date with `image_dir`, running the backbone only on what is missing.

    Raises UserError for what a user can fix; what was committed before then stays.
    """
    photos = list_photos(settings.image_dir)
    runner = Runner(settings)
    plain = runner.find_store() or runner.loaded_store
    done: list[Work] = []
    for number in range(settings.augment + 1):
        augmentation = settings.augmentation(number) if number else None
        if number == 1:
            _drop_other_augmentations(plain, runner)
        store = plain.augmentation(number, str(augmentation)) if augmentation else plain
        work = store.missing(photos, runner.read_fingerprints, done[0].rejected if done else None)
        if len(work) and not augmentation and runner.loaded_store.directory != plain.directory:
            # The weights have changed under the same name. The new backbone's folder may lack nothing.
            store = plain = runner.loaded_store
            work = store.missing(photos, runner.read_fingerprints)
        if len(work):
            runner.check_made(plain)
            from extract.compute import compute  # TensorFlow, which a run with nothing to do does not import

            with process.quiet_libraries():
                compute(runner, store, work, augmentation)
            if augmentation and work.newly_rejected:
                print(f"{work.newly_rejected} photos can no longer be read; augmentation {number} lacks them")
        store.publish(work, runner.read_fingerprints)
        done.append(work)
    return Result(
        plain.directory,
        classes=len(photos.labels),
        computed=done[0].computed,
        reused=done[0].reused,
        rejected=len(done[0].rejected) + len(photos.unlisted),
        augmented=sum(work.computed for work in done[1:]),
        augmented_reused=sum(work.reused for work in done[1:]),
        thumbnails=_add_thumbnails(plain.directory, settings) if settings.thumbnails else 0,
    )


def _drop_other_augmentations(plain: Store, runner: Runner) -> None:
    """Deletes the augmentations that other flags made; first makes sure that new ones can be made."""
    files.sweep([files.own_folder(plain.directory, layout.AUGMENTATIONS)])
    others = []
    for folder in layout.augmentations(plain.directory, begun=True):
        number = layout.augmentation_number(folder)
        if number and folder != plain.augmentation(number, str(runner.settings.augmentation(number))).directory:
            others.append(folder)
    if others:
        runner.check_made(plain)
        for folder in others:
            Store(folder, plain.backbone).drop()
        print(f"augmentations that were made with other flags are replaced: {len(others)}")


def _add_thumbnails(directory: Path, settings: Settings) -> int:
    """Makes the thumbnails that the photos of the index lack; returns how many."""
    with files.locked(directory, shared=True):
        _, index = indexes.read(directory)
        missing = thumbnails.missing(directory, index)
    if not len(missing):
        return 0
    files.sweep(sweepable(directory))
    process.import_tensorflow()
    from extract.thumbnails import make

    with process.quiet_libraries():
        return make(directory, index, missing, settings.threads)
